"""AIMET, which reads and writes the encodings of Qualcomm's converters: the encodings go into its simulator.

A tensor that a converter does not find an encoding for is calibrated again without a word, so the simulator is asked
twice: whether each encoding of the file is in force, and whether a quantizer is left that has none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from dipo.export.encodings import BIAS_BITS, Encoded, entries_of
from dipo.graph import operators
from dipo.graph.operators import Moves
from dipo.verify.onnx_network import Network, is_inside_kernel
from dipo.verify.sessions import outputs_of
from dipo.verify.verdict import Probe, Refused, State, TensorOutcome, Verdict, asking, require

GET = "it wants an environment of its own, see docs/verify.md"


def check(file: Path, probe: Probe) -> Verdict:
    """Load an encodings file into a simulator of `deploy.onnx`, compare its grids with the file's, and run it.

    Raises:
        Unavailable: AIMET is not installed.
        Refused: It does not take the file.
    """
    quantsim = require("aimet_onnx.quantsim", get=GET)
    for name in ("Quant", "Utils", "ConnectedGraph"):
        logging.getLogger(name).setLevel(logging.ERROR)
    wanted = _read(file)
    network = Network.read(file.with_name("deploy.onnx"))
    with asking():
        model = onnx.load(file.with_name("deploy.onnx"))
        sim = quantsim.QuantizationSimModel(
            model, param_type="int8", activation_type="int8", providers=["CPUExecutionProvider"]
        )
        values = {*sim.qc_quantize_op_dict, *sim.connected_graph.get_all_products()}
        inside = {
            name for name in wanted.keys() - values if is_inside_kernel(network.model, name, wanted.keys() & values)
        }
        # Missing quantizers stay on, so that they can be seen.
        content = _without(json.loads(file.read_text(encoding="utf-8")), inside)
        quantsim.load_encodings_to_sim(sim, content, strict=False, disable_missing_quantizers=False)
    uncalibrated = list(_left(wanted, sim.qc_quantize_op_dict))
    asked = {name: grid for name, grid in wanted.items() if name not in inside}
    tensors = [*_fates(asked, sim.qc_quantize_op_dict, network), *uncalibrated]
    tensors += [
        TensorOutcome(name, State.RECOMPUTED, "inside a kernel of AIMET's, where no value is kept")
        for name in sorted(inside)
    ]
    error = None
    if not uncalibrated:
        with asking():
            made = outputs_of(sim.session, probe.inputs, rows=network.batch())
        # The simulator gives the outputs names of its own.
        names = [output.name for output in network.model.graph.output]
        error = probe.error_of(dict(zip(names, made.values(), strict=True)))
    biases = sum(grid.bits >= BIAS_BITS for grid in wanted.values())
    notes = [f"{len(uncalibrated)} quantizers are left without an encoding"]
    notes += [f"{biases} biases of 32 bits are held and added in float"] if biases else []
    return Verdict(f"AIMET {version('aimet-onnx')}", file, tensors, error, notes=notes)


def _read(file: Path) -> dict[str, Encoded]:
    """Read the grids of a file, by name of the tensor.

    Raises:
        Refused: The file is none of the schemas.
    """
    try:
        return dict(entries_of(json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"no encodings of a known schema: {type(error).__name__} {error}") from error


def _without(content: Mapping[str, Any], names: Set[str]) -> dict[str, Any]:
    """Return an encodings file's content without the entries of some tensors, in any of the schemas."""

    def kept(entries: Any) -> Any:
        if isinstance(entries, dict):
            return {name: each for name, each in entries.items() if name not in names}
        if isinstance(entries, list):
            return [each for each in entries if each.get("name") not in names]
        return entries

    return {key: kept(each) if key.endswith("encodings") else each for key, each in content.items()}


def _fates(wanted: Mapping[str, Encoded], quantizers: Mapping[str, Any], network: Network) -> Iterator[TensorOutcome]:
    producers = network.producers()
    for name, grid in wanted.items():
        held = _held(quantizers, name)
        if held is None:
            source = _source(name, producers, quantizers)
            if source is None or source not in wanted:
                yield TensorOutcome(name, State.IGNORED, "no quantizer of the simulator took it")
            elif not wanted[source].same(grid):
                yield TensorOutcome(
                    name, State.RECOMPUTED, f"simulated on the grid of {source!r}, which it is moved from"
                )
            else:
                yield TensorOutcome(name, State.ACCEPTED, f"simulated with {source!r}, which it is moved from")
        elif held.same(grid):
            yield TensorOutcome(name, State.ACCEPTED)
        else:
            steps = f"in steps of {held.scale.max():.4g} in place of {grid.scale.max():.4g}"
            yield TensorOutcome(name, State.RECOMPUTED, f"tied to another tensor, {steps}")


def _left(wanted: Mapping[str, Encoded], quantizers: Mapping[str, Any]) -> Iterator[TensorOutcome]:
    """Yield the quantizers that wait for a calibration, because the file has no encoding for them."""
    for name, quantizer in quantizers.items():
        if name not in wanted and quantizer.enabled and not quantizer.is_initialized():
            yield TensorOutcome(name, State.RECOMPUTED, "not in the file, it would be calibrated again")


def _held(quantizers: Mapping[str, Any], name: str) -> Encoded | None:
    """Return the simulator's grid of a tensor; None where it has none, or leaves the tensor in float."""
    quantizer = quantizers.get(name)
    encodings = quantizer.get_encodings() if quantizer is not None else None
    if quantizer is None or not encodings or not (quantizer.enabled or encodings[0].bw >= BIAS_BITS):
        return None
    return Encoded.of(encodings[0].bw, [each.delta for each in encodings], [each.offset for each in encodings])


def _source(name: str, producers: Mapping[str, onnx.NodeProto], quantizers: Mapping[str, Any]) -> str | None:
    """Find the tensor with a grid in the simulator that this one is moved from (by Reshape and the like)."""
    # AIMET computes what is moved on the grid that it is moved from.
    while name in producers and _moves(producers[name]):
        name = producers[name].input[0]
        if _held(quantizers, name) is not None:
            return name
    return None


def _moves(node: onnx.NodeProto) -> bool:
    moves = operators.of(node).moves
    return moves is not None and moves is not Moves.JOINED
