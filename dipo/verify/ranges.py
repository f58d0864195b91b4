"""Range files as dipo reads them itself, for what their consumers cannot be asked: syntax, names and numbers."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import onnx
import yaml

from dipo.verify.compare import BIAS_BITS, Claim, Comparison, numbers, sentence_of
from dipo.verify.encodings import entries_of
from dipo.verify.verdict import Probe, Refused, State, Verdict

NAME = "grids of quantized.onnx"
BLOBS, ENTRIES = "blob_range", "quantize_parameters"
_HEADER = re.compile(r"TRT-\d+-\w+Calibration\w*")


@dataclass(frozen=True)
class Names:
    """What `deploy.onnx` has."""

    values: Set[str]
    """Constants among them."""
    nodes: Mapping[str, onnx.NodeProto]


def check(file: Path, probe: Probe) -> Verdict:
    """Read a range file, look up its names in `deploy.onnx`, and compare its numbers with `quantized.onnx`.

    Raises:
        Refused: The file is not of the form that dipo writes, or a model is missing beside it.
    """
    del probe  # nothing is computed
    beside = Comparison.beside(file)
    parse = next(parse for pattern, parse in FORMS.items() if fnmatch(file.name, pattern))
    names = Names(beside.deployed.values(), beside.deployed.nodes())
    try:
        claims = list(parse(file.read_text(encoding="utf-8"), names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise Refused(f"{file.name} is not of its form: {type(error).__name__} {why}") from error
    if not claims:
        raise Refused(f"{file.name} has no tensors")
    tensors, wrong = beside.fates(claims)
    alone = sum(fate.state is State.ACCEPTED and bool(fate.why) for fate in tensors)
    notes = [f"{alone} tensors have no grid in quantized.onnx: their names alone are known"] if alone else []
    return Verdict(NAME, file, tensors, refused=sentence_of(wrong, file), notes=notes)


def _claim(name: str, names: Names, **said: Any) -> Claim:
    """A claim on the tensor of the same name."""
    tensor = name if name in names.values else None
    return Claim(name, tensor, **{key: numbers(value) for key, value in said.items()})


def _input(names: Names, node: str, index: int) -> str | None:
    """What a node reads; None where there is no such node or input."""
    found = names.nodes.get(node)
    return found.input[index] if found is not None and index < len(found.input) else None


def _cache(text: str, names: Names) -> Iterator[Claim]:
    header, *lines = text.splitlines()
    if not _HEADER.fullmatch(header):
        raise ValueError(f"{header!r} is no header of TensorRT's")
    for line in lines:
        name, _, digits = line.rpartition(": ")
        if not re.fullmatch("[0-9a-f]{8}", digits):
            raise ValueError(f"{line!r} has no float32 of 8 digits")
        amax = struct.unpack(">f", bytes.fromhex(digits))[0] * 127
        yield _claim(name, names, low=-amax, high=amax)


def _trt(text: str, names: Names) -> Iterator[Claim]:
    for name, amax in json.loads(text)[BLOBS].items():
        yield _claim(name, names, low=-float(amax), high=amax)


def _magicmind(text: str, names: Names) -> Iterator[Claim]:
    for name, ends in json.loads(text)[BLOBS].items():
        yield _claim(name, names, low=ends["min"], high=ends["max"])


def _imx(text: str, names: Names) -> Iterator[Claim]:
    for name, scales in json.loads(text)[BLOBS].items():
        yield _claim(name, names, scale=scales)


def _ti(text: str, names: Names) -> Iterator[Claim]:
    for name, (low, high) in json.loads(text)[BLOBS].items():
        yield _claim(name, names, low=low, high=high)


def _ti_lines(text: str, names: Names) -> Iterator[Claim]:
    for line in text.splitlines():
        name, low, high = line.rsplit(" ", 2)
        yield _claim(name, names, low=low, high=high)


def _atlas(text: str, names: Names) -> Iterator[Claim]:
    for name, factors in json.loads(text).items():
        scale, offset = float(factors["scale"]), float(factors["offset"])
        low, high = ((code - offset) * scale for code in (-128, 127))
        yield _claim(name, names, scale=scale, low=low, high=high)


def _rk(text: str, names: Names) -> Iterator[Claim]:
    for name, ends in yaml.safe_load(text)[ENTRIES].items():
        claim = _claim(name, names, low=ends["min"], high=ends["max"])
        node, _, which = name.rpartition("_")
        if claim.tensor is None and which in {"W", "b"}:
            claim = replace(claim, tensor=_input(names, node, 1 if which == "W" else 2))
        yield claim


def _rv(text: str, names: Names) -> Iterator[Claim]:
    for name, entry in yaml.safe_load(text)[ENTRIES].items():
        found = re.fullmatch("@(.+):(weight|bias|out([0-9]+))", name)
        if not found:
            raise ValueError(f"{name!r} names no tensor of a node")
        said = {"scale": numbers(entry["scale"])}
        if entry["qtype"] != "i32":
            said |= {"low": numbers(entry["min_value"]), "high": numbers(entry["max_value"])}
            said["offset"] = -numbers(entry["zero_point"])
        yield Claim(name, _of_node(names, *found.groups()), **said)


def _of_node(names: Names, node: str, which: str, output: str | None) -> str | None:
    if output is None:
        return _input(names, node, 1 if which == "weight" else 2)
    found = names.nodes.get(node)
    if found is None:
        return node if node in names.values else None
    return found.output[int(output)] if int(output) < len(found.output) else None


def _stpu(text: str, names: Names) -> Iterator[Claim]:
    """A transformed weight has a range of its own, which says nothing of the grid."""
    content, nodes = json.loads(text), names.nodes
    for name, entry in content.items():
        node, _, kind = name.rpartition("_")
        if name.startswith("layer_") and name.removeprefix("layer_") in nodes and set(entry) == {"wg"}:
            continue
        said = {"scale": entry["alpha"]} if "alpha" in entry else {"low": entry["min"], "high": entry["max"]}
        if node not in nodes or kind not in {"weights", "bias"}:
            yield _claim(name, names, **said)
            continue
        given = {} if f"layer_{node}" in content else {key: numbers(value) for key, value in said.items()}
        yield Claim(name, _input(names, node, 1 if kind == "weights" else 2), **given)


def _encodings(text: str, names: Names) -> Iterator[Claim]:
    content = json.loads(text)
    legacy = content["version"] not in {"1.0.0", "2.0.0"}
    for name, grid in entries_of(content):
        claim = _claim(name, names, scale=grid.scale, offset=grid.offset)
        low, high = grid.offset * grid.scale, (grid.offset + (1 << grid.bits) - 1) * grid.scale
        if legacy:
            channels = {**content["activation_encodings"], **content["param_encodings"]}[name]
            low, high = (numbers([each[end] for each in channels]) for end in ("min", "max"))
        # A bias has a step alone: nobody's range reaches as far as 32 bits do.
        yield claim if grid.bits >= BIAS_BITS else replace(claim, low=low, high=high)


FORMS: dict[str, Callable[[str, Names], Iterator[Claim]]] = {
    "calibration.cache": _cache,
    "trt_clip_val.json": _trt,
    "magicmind_quant_param.json": _magicmind,
    "imx_scale.json": _imx,
    "stpu_minmax.json": _stpu,
    "ti_blob_range.json": _ti,
    "ti_blob_range.txt": _ti_lines,
    "atlas_quant_param.json": _atlas,
    "rk_quantized_param.*": _rk,
    "rv_quantized_param.*": _rv,
    "*_encodings.json": _encodings,
}
"""How each file is read, by pattern of its name: JSON is YAML, too."""
