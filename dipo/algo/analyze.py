"""Analysis of a quantized network: how much each layer loses to its weights and to its inputs.

For each layer, in one pass over the samples:
  weight, activation, both   the layer quantized alone, on float inputs: its own output;
  accumulated                the same output in the quantized network, with the errors of all before it;
  sensitivity                the network's outputs when nothing but this layer is quantized.

Only the nodes downstream of a layer run again for its sensitivity: about half a forward pass for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import Batch, StoredRows, channel_sum, read_ahead
from dipo.algo.analysis_sums import Analysis
from dipo.algo.bench import Bench, Shared
from dipo.algo.simulate import simulated_constants
from dipo.graph.accessors import name_of
from dipo.graph.layers import layers_of
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.target_spec import TargetSpec
from dipo.graph.torch_module import GraphModule, Step
from dipo.quant.error_sums import ErrorSums
from dipo.quant.functional import TorchQParams, fake_quantize

QUESTIONS = ("weight", "activation", "both", "accumulated", "sensitivity")


@dataclass(frozen=True)
class _Probe:
    """A layer with all that the questions about it need."""

    layer: str
    step: Step
    qparams: TorchQParams | None
    """Scale and zero point of its input; None where that stays float."""
    constants: dict[str, torch.Tensor]
    """Its weight and bias by name, as the target keeps them."""
    has_bias: bool
    suffix: tuple[Step, ...]
    """Nodes downstream of its output, in topological order."""


def analyze(
    model: ir.Model,
    *,
    plan: Plan,
    quantized: QuantizedModel,
    rules: TargetSpec,
    batches: Sequence[Batch],
    inputs: Callable[[Batch], Mapping[str, torch.Tensor]],
    sensitivity_samples: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda _: None,
) -> Analysis:
    """Answer the questions of this module for a worker's batches.

    A batch's values are kept where a question reads them, so memory is bounded by a batch, not by the samples.

    Args:
        model: The float network.
        plan: Layers and activations that are quantized; only its layers are analyzed.
        quantized: Codes and scales.
        rules: Constraints of the target, for the type of its biases.
        batches: Batches of this worker.
        inputs: Function that reads a batch.
        sensitivity_samples: Samples of the run, from the first, on which sensitivity is measured: every batch that
            begins among them.
        device: Device to run on.
        progress: Called with the number of samples done.
    """
    outputs = [value for value in model.graph.outputs if value.dtype is None or value.dtype.is_floating_point()]
    module = GraphModule(model).to(device).eval()
    constants = simulated_constants(model, plan=plan, quantized=quantized, rules=rules, device=device)
    passes = _Passes(
        module=module,
        outputs=tuple(name_of(value) for value in outputs or model.graph.outputs),
        float_constants={name: module.constant(name) for name in module.constant_names},
        constants=constants,
        qparams={
            name: TorchQParams.of(quantized.activations[name], num_dims=0, device=device) for name in plan.activations
        },
    )
    probes = _probes(model, plan, passes)
    parts: dict[str, dict[str, dict[int, tuple[ErrorSums, ...]]]] = {
        question: {probe.layer: {} for probe in probes} for question in QUESTIONS
    }
    shifts: dict[str, dict[int, NDArray[np.float64]]] = {probe.layer: {} for probe in probes if probe.has_bias}
    done = 0
    with torch.inference_mode():
        for batch, values in read_ahead(batches, inputs):
            answers, moved = passes.answer(values, probes, sensitivity=batch.start < sensitivity_samples)
            for question, layers in answers.items():
                for name, sums in layers.items():
                    parts[question][name][batch.index] = sums
            for name, shift in moved.items():
                shifts[name][batch.index] = shift
            done += len(batch)
            progress(done)
    return Analysis(parts, shifts)


@dataclass(frozen=True, eq=False)
class AnalyzeBatches:
    """The task to analyze some batches."""

    name: ClassVar[str] = "analyze"
    batches: Sequence[Batch]
    quantized: Shared[QuantizedModel]
    sensitivity_samples: int

    def run(self, bench: Bench, *stored: StoredRows) -> Analysis:
        """Answer the questions of this module for the batches."""
        del stored
        return analyze(
            bench.model,
            plan=bench.plan,
            quantized=self.quantized.get(),
            rules=bench.rules,
            batches=self.batches,
            inputs=bench.calib_inputs,
            sensitivity_samples=self.sensitivity_samples,
            device=bench.device,
            progress=bench.progress,
        )


def _probes(model: ir.Model, plan: Plan, passes: _Passes) -> list[_Probe]:
    steps = {step.node: index for index, step in enumerate(passes.module.steps)}
    probes = []
    for name, node in ((layer.name, layer.node) for layer in layers_of(model)):
        if name not in plan.layers:
            continue
        index, layer = steps[name], plan.layers[name]
        source = plan.input_of(node)
        own = (layer.weight, layer.bias)
        probes.append(
            _Probe(
                layer=name,
                step=passes.module.steps[index],
                qparams=None if source is None else passes.qparams[source],
                constants={key: passes.constants[key] for key in own if key is not None and key in passes.constants},
                has_bias=layer.bias is not None,
                suffix=_suffix(passes.module.steps[index:]),
            )
        )
    return probes


def _suffix(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps downstream of the first one."""
    reached = set(steps[0].outputs)
    suffix = []
    for step in steps[1:]:
        if not reached.isdisjoint(name for name in step.inputs if name is not None):
            suffix.append(step)
            reached.update(step.outputs)
    return tuple(suffix)


@dataclass(frozen=True)
class _Passes:
    """A network on its device, as it is and quantized."""

    module: GraphModule
    outputs: tuple[str, ...]
    """Names of the network outputs that hold floating-point numbers."""
    float_constants: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    """Weights and biases by name, as the target keeps them."""
    qparams: dict[str, TorchQParams]
    """Scales and zero points by name of the activation."""

    def answer(
        self, values: Mapping[str, torch.Tensor], probes: Sequence[_Probe], *, sensitivity: bool
    ) -> tuple[dict[str, dict[str, tuple[ErrorSums, ...]]], dict[str, NDArray[np.float64]]]:
        """Return one batch's errors by question and layer, and its sums for `Analysis.shifts`."""
        kept = self._float_values(values, _read_values(probes, self.outputs, sensitivity=sensitivity))
        answers: dict[str, dict[str, tuple[ErrorSums, ...]]] = {question: {} for question in QUESTIONS}
        shifts = {}
        answers["accumulated"] = self._accumulated(values, probes, kept)
        for probe in probes:
            name = probe.layer
            fp = kept[probe.step.outputs[0]]
            x = kept[_data(probe.step)]
            both = _run_layer(probe.step, x, {**kept, **probe.constants})
            answers["weight"][name] = (ErrorSums.between(fp, both),)
            if probe.qparams is not None:
                x = fake_quantize(x, probe.qparams)
                answers["activation"][name] = (ErrorSums.between(fp, _run_layer(probe.step, x, kept)),)
                both = _run_layer(probe.step, x, {**kept, **probe.constants})
            answers["both"][name] = (ErrorSums.between(fp, both),)
            if probe.has_bias:
                shifts[name] = channel_sum(both - fp).cpu().numpy()
            if sensitivity:
                reached = self._rerun(probe, both, kept)
                answers["sensitivity"][name] = tuple(
                    ErrorSums.between(kept[output], reached.get(output, kept[output])) for output in self.outputs
                )
        return answers, shifts

    def _float_values(self, values: Mapping[str, torch.Tensor], wanted: frozenset[str]) -> dict[str, torch.Tensor]:
        """Run the float network; return its constants and the wanted values by name."""
        kept = dict(self.float_constants)

        def keep(name: str, value: torch.Tensor) -> torch.Tensor:
            if name in wanted:
                kept[name] = value
            return value

        self.module(values, hook=keep)
        return kept

    def _accumulated(
        self, values: Mapping[str, torch.Tensor], probes: Sequence[_Probe], kept: Mapping[str, torch.Tensor]
    ) -> dict[str, tuple[ErrorSums, ...]]:
        taps = {probe.step.outputs[0]: probe.layer for probe in probes}
        errors: dict[str, tuple[ErrorSums, ...]] = {}

        def hook(name: str, value: torch.Tensor) -> torch.Tensor:
            if name in taps:
                errors[taps[name]] = (ErrorSums.between(kept[name], value),)
            return fake_quantize(value, self.qparams[name]) if name in self.qparams else value

        self.module(values, hook=hook, constants=self.constants)
        return errors

    def _rerun(self, probe: _Probe, output: torch.Tensor, kept: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the network outputs downstream of the layer, with its output replaced and all else float."""
        live = {probe.step.outputs[0]: output}
        result = {name: value for name, value in live.items() if name in self.outputs}
        for step in probe.suffix:
            results = step.function(
                *(None if name is None else live[name] if name in live else kept[name] for name in step.inputs)
            )
            live |= zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=False)
            result |= {name: live[name] for name in step.outputs if name in self.outputs}
            for name in step.last_reads:
                live.pop(name, None)
        return result


def _read_values(probes: Sequence[_Probe], outputs: Sequence[str], *, sensitivity: bool) -> frozenset[str]:
    """Return the names of the float values that the questions read."""
    wanted = {*outputs, *(name for probe in probes for name in (_data(probe.step), probe.step.outputs[0]))}
    steps = {probe.step.node: probe.step for probe in probes}
    if sensitivity:
        steps |= {step.node: step for probe in probes for step in probe.suffix}
    # What a node reads alone is what the layer's change has reached; a sum or a concatenation reads other values too.
    wanted |= {name for step in steps.values() if len(step.inputs) > 1 for name in step.inputs if name}
    return frozenset(wanted)


def _data(step: Step) -> str:
    """Return the name of the value that a layer multiplies by its weight."""
    name = step.inputs[0]
    assert name is not None
    return name


def _run_layer(step: Step, data: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    made = step.function(data, *(None if name is None else values[name] for name in step.inputs[1:]))
    assert isinstance(made, torch.Tensor)
    return made
