"""RKNN toolkit 2: the ranges go into the file between the two steps of its hybrid quantization.

They are put there by `dipo.export.rknn_config`, as users do it. Each step runs in a folder that is thrown away. What
the second step says that it changed was taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml

from dipo.errors import UserError
from dipo.export import rknn_config as config
from dipo.export.rknn_config import ENTRIES, Ranges
from dipo.verify.onnx_network import Network, is_inside_kernel
from dipo.verify.sessions import in_rows
from dipo.verify.verdict import Arrays, Probe, Refused, State, TensorOutcome, Verdict, asking, require, silence

GET = "it wants an environment of its own, see docs/verify.md"
DEVICE = "rk3588"
SAMPLES = 8
"""The simulator takes one batch at a time, of 1 where the file leaves it free."""
SLACK = 1e-6
"""Largest relative difference of the ends of equal ranges: the toolkit computes some with single precision."""
_CHANGED = re.compile(r"quantize_parameters\['(.*?)'\] were changed")
_ONE_RANGE = config.SAME | config.PART | config.LIMITS | config.PADDED
"""Operators that have one range for what they read and make, where the toolkit has left one of the two out."""


@dataclass(frozen=True)
class Taken:
    """The ranges that the toolkit was given, and those that it took."""

    before: Ranges
    """The ranges that it calibrated."""
    sources: Mapping[str, str]
    """Our tensor whose range was given, by the toolkit's tensor."""
    own: tuple[str, ...]
    """Values that keep the toolkit's calibrated range."""
    replaced: Mapping[str, str]
    """The toolkit's tensor in place of ours at the layer of the same name, by our tensor."""
    changed: frozenset[str] = frozenset()
    """Tensors whose ranges the toolkit reports as changed."""

    def took(self, name: str, ours: Ranges) -> bool:
        """Return whether the toolkit's tensor has the range that it was given."""
        return name in self.changed or _same(self.before[name], ours[self.sources[name]])


def check(file: Path, probe: Probe) -> Verdict:
    """Quantize `deploy.onnx` with the file's ranges, and run some samples on the toolkit's simulator.

    Raises:
        Unavailable: The toolkit is not installed.
        Refused: It does not take the network or the ranges.
    """
    rknn = require("rknn.api", get=GET)
    try:
        ours: Ranges = config.read_ranges(file)[ENTRIES]
    except UserError as error:
        raise Refused(str(error)) from error
    model = file.with_name("deploy.onnx").absolute()
    read = Network.read(model)
    network, rows = read.model, read.batch() or 1
    some = Probe(*({name: array[:SAMPLES] for name, array in each.items()} for each in (probe.inputs, probe.outputs)))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), silence(Path("log.txt")):
        with asking():
            _calibrate(rknn.RKNN(verbose=False), model, probe.inputs, rows=rows, is_static=read.is_static())
            taken = _edit(ours, network)
            names = [output.name for output in network.graph.output]
            outputs = _simulate(rknn.RKNN(verbose=False), names, some.inputs, rows=rows)
        sys.stdout.flush()
        sys.stderr.flush()
        said = Path("log.txt").read_text(errors="replace")
    taken = dataclasses.replace(taken, changed=frozenset(_CHANGED.findall(said)))
    tensors = list(_fates(ours, taken, network))
    kept = len(taken.before) - len(taken.sources) - len(taken.own)
    notes = [f"{kept} constants of the toolkit's own keep its ranges, biases among them"] if kept else []
    return Verdict(f"RKNN toolkit {version('rknn-toolkit2')}", file, tensors, some.error_of(outputs), notes=notes)


def _calibrate(toolkit: Any, model: Path, inputs: Arrays, *, rows: int, is_static: bool) -> None:
    """Run the first step, which writes the file of ranges that `_edit` changes.

    A file whose sizes are all fixed is loaded as it is; they are given where one is open, as docs/platforms.md says.
    """
    lines = []
    num = len(next(iter(inputs.values())))
    for row in range(0, num, rows):
        chosen = np.arange(row, row + rows) % num
        files = {f"{number}-{row}.npy": array[chosen] for number, array in enumerate(inputs.values())}
        for name, sample in files.items():
            np.save(name, sample)
        lines.append(" ".join(files))
    Path("samples.txt").write_text("\n".join(lines) + "\n")
    sizes = {"inputs": list(inputs), "input_size_list": [[rows, *array.shape[1:]] for array in inputs.values()]}
    _ask(toolkit.config(target_platform=DEVICE, quantized_dtype="w8a8", quantized_method="layer"), "its configuration")
    _ask(toolkit.load_onnx(str(model), **({} if is_static else sizes)), "the network")
    _ask(toolkit.hybrid_quantization_step1(dataset="samples.txt", proposal=False), "step 1")
    toolkit.release()


def _edit(ours: Ranges, network: onnx.ModelProto) -> Taken:
    """Write our ranges into the toolkit's file, as users do it."""
    file = Path("deploy.quantization.cfg")
    content, toolkit = config.read_ranges(file), config.read_network(Path("deploy.model"))
    before = content[ENTRIES]
    sources = config.sources_of(before, ours, toolkit=toolkit, network=network)
    file.write_text(yaml.safe_dump(config.merged(content, ours, sources), sort_keys=False))
    replaced = {}
    for node, given in config.matched_layers(toolkit, network):
        for its, name in zip([*node.input[1:2], node.output[0]], [*given.input[1:2], given.output[0]], strict=True):
            if its != name:
                replaced[name] = its
    return Taken(before, sources, tuple(config.own_values(before, sources, toolkit)), replaced)


def _simulate(toolkit: Any, names: list[str], inputs: Arrays, *, rows: int) -> dict[str, Any]:
    """Run the second step, then the samples on the toolkit's simulator; return its outputs by name."""
    _ask(toolkit.hybrid_quantization_step2("deploy.model", "deploy.data", "deploy.quantization.cfg"), "step 2")
    _ask(toolkit.init_runtime(), "its simulator")

    def run(batch: Arrays) -> Arrays:
        made = toolkit.inference(inputs=list(batch.values()), data_format=["nchw"] * len(batch))
        return dict(zip(names, made, strict=True))

    outputs = in_rows(run, inputs, rows=rows)
    toolkit.release()
    return outputs


def _ask(code: int, what: str) -> None:
    if code != 0:
        raise Refused(f"{what} ended with {code}")


def _fates(ours: Ranges, taken: Taken, network: onnx.ModelProto) -> Iterator[TensorOutcome]:
    took = {name for name in taken.sources if taken.took(name, ours)}
    parameters = _other_names(network)
    for name, ends in ours.items():
        its = [each for each, source in taken.sources.items() if source == name]
        if its and took.issuperset(its):
            yield TensorOutcome(name, State.ACCEPTED, "" if name in its else f"the toolkit calls it {its[0]!r}")
        elif its:
            yield TensorOutcome(name, State.IGNORED, "the toolkit does not say that it took the range")
        elif parameters.get(name) in taken.before:
            yield _parameter(name, parameters[name], ours, taken)
        elif parameters.get(name, name) in taken.replaced:
            yield TensorOutcome(
                name, State.RECOMPUTED, f"the toolkit has {taken.replaced[parameters.get(name, name)]!r} in its place"
            )
        else:
            there = (each for each in _neighbours(name, network) if each in took and _same(ends, ours[each]))
            other = next(there, None)
            if other is not None:
                yield TensorOutcome(
                    name, State.ACCEPTED, f"the toolkit has left it out; its range is that of {other!r}"
                )
            elif is_inside_kernel(network, name, took):
                yield TensorOutcome(name, State.RECOMPUTED, "inside a kernel of the toolkit's, where no value is kept")
            else:
                yield TensorOutcome(name, State.IGNORED, "the toolkit has no tensor of this name")
    for name in taken.own:
        yield TensorOutcome(name, State.RECOMPUTED, "a value of the toolkit's own, as it calibrated it")


def _parameter(name: str, parameter: str, ours: Ranges, taken: Taken) -> TensorOutcome:
    """Return the outcome of a weight or bias that the file names after its node."""
    its = ours[taken.sources[parameter]] if parameter in taken.sources else taken.before[parameter]
    if _same(its, ours[name]):
        return TensorOutcome(name, State.ACCEPTED, f"another name of {parameter!r}")
    # Channels that are constant, because all their weights are zero, are added to the biases behind them.
    return TensorOutcome(name, State.RECOMPUTED, f"the toolkit has a range of its own for {parameter!r}")


def _other_names(network: onnx.ModelProto) -> dict[str, str]:
    """Return the initializers of layers by the names made of the node's: `<node>_W` and `<node>_b`."""
    found: dict[str, str] = {}
    for node in network.graph.node:
        if node.op_type in config.LAYERS:
            found |= {f"{node.name}_{end}": name for end, name in zip("Wb", node.input[1:], strict=False)}
    return found


def _neighbours(name: str, network: onnx.ModelProto) -> Iterator[str]:
    """Yield the values that share a range with this one across an operator that has one range."""
    for node in network.graph.node:
        if node.op_type in _ONE_RANGE:
            if name in node.output:
                yield node.input[0]
            elif node.input[0] == name:
                yield node.output[0]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(np.allclose(one[end], other[end], rtol=SLACK, atol=0) for end in ("min", "max"))
