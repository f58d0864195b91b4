"""Transfer of the ranges of `rk_quantized_param.yaml` into the `.quantization.cfg` of RKNN toolkit 2.

The toolkit changes the network: inputs and outputs are cast to integers (`x_int8`), a mean or a Gemm becomes
convolutions, reshapes are added and removed. So a tensor that the file does not name gets its range from the tensor
with the same numbers, found by comparing the toolkit's network with `deploy.onnx`. This runs without torch and onnx_ir,
beside the toolkit:

    python -m dipo.export.rknn_config net.quantization.cfg rk_quantized_param.yaml
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import yaml

from dipo.errors import UserError
from dipo.export.text_files import write_text
from dipo.graph import operators
from dipo.graph.operators import Kind, Moves

Ranges = Mapping[str, Mapping[str, Any]]

ENTRIES = "quantize_parameters"
"""Section of both files with the ranges."""
CONFIG = ".quantization.cfg"
LAYERS = operators.with_kind(Kind.WEIGHTED)
SAME = operators.names(lambda operator: operator.moves is Moves.ALL) | {"exDataConvert"}
"""Operators whose output has exactly the numbers of the input; `exDataConvert` is the toolkit's cast."""
PART = operators.names(lambda operator: operator.moves in {Moves.SOME, Moves.PICKED})
"""Operators whose output has some of the numbers of the input."""
MOVED = operators.names(lambda operator: operator.moves is not None)
PADDED = operators.names(lambda operator: operator.moves is Moves.PADDED)
LIMITS = operators.names(lambda operator: operator.limits is not None)
"""Operators fused with the kernel before them, whose constants need no wider range than their output."""


def merged(config: Mapping[str, Any], ours: Ranges, sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the toolkit's configuration with our ranges; the rest of it stays as it is.

    Args:
        config: Configuration that the first step of the hybrid quantization wrote.
        ours: `quantize_parameters` of `rk_quantized_param.yaml`.
        sources: Result of `sources_of`.
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for name, source in sources.items():
        result[ENTRIES][name] |= {end: [float(number) for number in ours[source][end]] for end in ("min", "max")}
    return result


def sources_of(
    names: Collection[str], ours: Ranges, *, toolkit: onnx.ModelProto, network: onnx.ModelProto
) -> dict[str, str]:
    """Return, by the toolkit's name of each tensor, the name in our file of the tensor whose range it takes.

    Args:
        names: Tensors with ranges in the toolkit's configuration.
        ours: Ranges in our file.
        toolkit: The toolkit's network, which its first step writes (`.model`).
        network: The network that the toolkit was given.
    """
    sources = {name: name for name in names if name in ours}
    for node, given in matched_layers(toolkit, network):
        for name, source in ((node.input[0], given.input[0]), (node.output[0], given.output[0])):
            if source in ours:
                sources.setdefault(name, source)
    constants = {tensor.name for tensor in toolkit.graph.initializer}
    for node, given in _matched_nodes(toolkit, network):
        for name, source in zip([*node.input, *node.output], [*given.input, *given.output], strict=True):
            if source in ours and name in names and name not in constants:
                sources.setdefault(name, source)
    known = -1
    while known != len(sources):
        known = len(sources)
        for node in toolkit.graph.node:
            _spread(sources, node, names)
    return {name: sources[name] for name in names if name in sources}


def matched_layers(
    toolkit: onnx.ModelProto, network: onnx.ModelProto
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Yield the toolkit's layers with the originals; the toolkit appends `#2` to the name of one that it replaced."""
    layers = {node.name: node for node in network.graph.node if node.op_type in LAYERS}
    for node in toolkit.graph.node:
        given = layers.get(node.name) or layers.get(node.name.rpartition("#")[0])
        if given is not None and node.op_type in LAYERS:
            yield node, given


def _matched_nodes(
    toolkit: onnx.ModelProto, network: onnx.ModelProto
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Yield the toolkit's nodes that compute what the originals of the same name do, on reshaped values perhaps.

    A node that the toolkit has merged with others, such as one Sigmoid in front of a Split for three behind it, reads a
    tensor of the network that its original does not.
    """
    originals = {node.name: node for node in network.graph.node if node.name}
    values = {name for node in network.graph.node for name in (*node.input, *node.output)}
    for node in toolkit.graph.node:
        given = originals.get(node.name)
        if given is None or node.op_type != given.op_type or node.op_type in MOVED:
            continue
        if len(node.input) == len(given.input) and len(node.output) == len(given.output):
            pairs = [*zip(node.input, given.input, strict=True), *zip(node.output, given.output, strict=True)]
            if all(name == source or name not in values for name, source in pairs):
                yield node, given


def _spread(sources: dict[str, str], node: onnx.NodeProto, names: Collection[str]) -> None:
    """Add to `sources` the inputs and outputs of a node that share a range with a tensor in it."""
    if not node.input:
        return
    first, output = node.input[0], node.output[0]
    if node.op_type in SAME | PART and first in sources:
        for name in node.output:
            sources.setdefault(name, sources[first])
    if node.op_type in SAME and output in sources:
        sources.setdefault(first, sources[output])
    if node.op_type in LIMITS and output in sources:
        for name in node.input:
            if name in names:
                sources.setdefault(name, sources[output])


def read_ranges(file: Path) -> dict[str, Any]:
    """Read a file in the toolkit's form.

    Raises:
        UserError: It cannot be read, or has no `quantize_parameters`.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file, give one that is there") from error
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: it cannot be read ({type(error).__name__}), have it written again") from error
    if not isinstance(content, dict) or not isinstance(content.get(ENTRIES), dict):
        raise UserError(f"{file}: no {ENTRIES} are in it, give the file of ranges")
    return content


def read_network(file: Path) -> onnx.ModelProto:
    """Read a network without its large tensors.

    Raises:
        UserError: It is missing, or not ONNX.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(file, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise UserError(f"{file}: no network can be read there, leave it beside the file of ranges") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Edit the toolkit's file in place; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 2 or {"-h", "--help"} & {*words}:
        sys.stdout.write(
            "usage: python -m dipo.export.rknn_config NET.quantization.cfg rk_quantized_param.yaml\n"
            "NET.model lies beside the first, deploy.onnx beside the second; the first is written again.\n"
        )
        return 0 if {"-h", "--help"} & {*words} else 2
    try:
        sys.stdout.write(_edit(Path(words[0]), Path(words[1])))
    except UserError as error:
        sys.stderr.write(f"dipo.export.rknn_config: {error}\n")
        return 2
    return 0


def _edit(file: Path, ranges: Path) -> str:
    if not file.name.endswith(CONFIG):
        raise UserError(f"{file}: no name of the toolkit's, give the {CONFIG} that its first step wrote")
    config, ours = read_ranges(file), read_ranges(ranges)[ENTRIES]
    toolkit = read_network(file.with_name(f"{file.name.removesuffix(CONFIG)}.model"))
    network = read_network(ranges.with_name("deploy.onnx"))
    sources = sources_of(config[ENTRIES], ours, toolkit=toolkit, network=network)
    write_text(file, yaml.safe_dump(merged(config, ours, sources), sort_keys=False))
    left = own_values(config[ENTRIES], sources, toolkit)
    said = f"{file}: {len(sources)} of {len(config[ENTRIES])} tensors have the ranges of {ranges}\n"
    return said + (f"as the toolkit calibrated them: {', '.join(left)}\n" if left else "")


def own_values(names: Collection[str], sources: Mapping[str, str], toolkit: onnx.ModelProto) -> list[str]:
    """Return the values, other than constants, for which the toolkit keeps its own range."""
    constants = {tensor.name for tensor in toolkit.graph.initializer}
    return [name for name in names if name not in sources and name not in constants]


if __name__ == "__main__":
    sys.exit(main())
