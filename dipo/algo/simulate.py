"""The quantized network in torch as the written model computes it, next to the float network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dipo.algo.activation_cache import Batch, StoredRows, read_ahead
from dipo.algo.bench import Bench, Shared
from dipo.algo.integer_kernels import IntegerKernels, integer_kernels
from dipo.algo.joined_inputs import Join, JoinedInput, joined_errors, joined_inputs, joins, values_of
from dipo.data.samples import Dataset
from dipo.graph.accessors import name_of, node_name, opset_of
from dipo.graph.layers import layers_of
from dipo.graph.ops.ordered import ordered_conv
from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.plan import Plan, QuantizedModel
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.target_spec import TargetSpec
from dipo.graph.torch_module import GraphModule, Hook, channels_last
from dipo.quant.bias import quantize_bias
from dipo.quant.error_sums import ErrorSums
from dipo.quant.functional import TorchQParams, fake_quantize

Tensors = dict[str, torch.Tensor]
Walk = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Simulated:
    """Outputs of both networks for some batches."""

    fp_outputs: dict[str, NDArray[Any]]
    """By name of the network output, [samples, ...] in order."""
    q_outputs: dict[str, NDArray[Any]]
    layers: dict[str, ErrorSums]
    """By name of the layer: errors of its output, those of all layers before it included."""
    concats: dict[JoinedInput, ErrorSums]
    """Errors of the inputs of Concats behind the Concats' grids, likewise."""

    @staticmethod
    def joined(parts: Sequence[Simulated]) -> Simulated:
        """Return the outputs of all batches, in order, and the sums of their errors."""
        layers: dict[str, ErrorSums] = {}
        concats: dict[JoinedInput, ErrorSums] = {}
        for part in parts:
            for name, error in part.layers.items():
                layers[name] = layers.get(name, ErrorSums()) + error
            for each, error in part.concats.items():
                concats[each] = concats.get(each, ErrorSums()) + error
        names = parts[0].fp_outputs
        return Simulated(
            {name: np.concatenate([part.fp_outputs[name] for part in parts]) for name in names},
            {name: np.concatenate([part.q_outputs[name] for part in parts]) for name in names},
            layers,
            concats,
        )


def simulate(
    model: ir.Model,
    *,
    plan: Plan,
    quantized: QuantizedModel,
    rules: TargetSpec,
    batches: Sequence[Batch],
    inputs: Callable[[Batch], Mapping[str, torch.Tensor]],
    profile_samples: int,
    device: torch.device,
    progress: Callable[[int], None],
    samples: SampleAxes | None = None,
) -> Simulated:
    """Run the float and the quantized network over a worker's batches.

    Where the target keeps biases in int32, nodes between codes compute what integer kernels compute, to the last code
    (`dipo.algo.integer_kernels`). All other nodes compute in float with the numbers that the codes stand for; on a CPU,
    convolutions then add in the order of ONNX Runtime (`dipo.graph.ops.ordered`).

    Args:
        model: The float network.
        plan: Layers and activations that are quantized.
        quantized: Codes and scales.
        rules: Constraints of the target, for the type of its biases.
        batches: Batches of this worker.
        inputs: Function that reads a batch.
        profile_samples: Samples of the run, from the first, whose layers are compared too.
        device: Device to run on.
        progress: Called with the number of samples done.
        samples: Where the samples lie in each output; None: on the first axis of all.
    """
    samples = samples or SampleAxes()
    taps = {name_of(layer.output): layer.name for layer in layers_of(model)}
    names, concats = [name_of(value) for value in model.graph.outputs], joins(model)
    short, tapped = (
        GraphModule(model, outputs=outputs).to(device).eval()
        for outputs in (names, list(dict.fromkeys((*names, *taps, *values_of(concats)))))
    )
    kernels = _kernels(model, module=short, plan=plan, quantized=quantized, rules=rules, device=device)
    constants = simulated_constants(model, plan=plan, quantized=quantized, rules=rules, device=device)
    constants |= kernels.constants
    q_short, q_tapped = kernels.module(short), kernels.module(tapped)
    hook = _quantizers(plan, quantized, kernels, device=device)
    quantized_outputs = [name for name in names if rules.quantize_outputs and name in plan.activations]

    fp_parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    q_parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    profile = _Profile(taps, concats, plan, kernels, hook)
    done = 0
    with torch.inference_mode():
        for batch, values in read_ahead(batches, inputs):
            if batch.start < profile_samples:
                walks = tapped.walk(values), q_tapped.walk(values, hook=hook, constants=constants)
                fp, q = profile.compared(*walks, kept=names)
            else:
                fp, q = short(values), q_short(values, hook=hook, constants=constants)
            q |= {name: hook(name, q[name]) for name in quantized_outputs}
            for name in names:
                for parts, made in ((fp_parts, fp), (q_parts, q)):
                    parts[name].append(samples.by_sample(name, made[name].cpu().numpy(), len(batch)))
            done += len(batch)
            progress(done)
    return Simulated(_join(fp_parts), _join(q_parts), profile.layers, profile.joined)


def _kernels(
    model: ir.Model,
    *,
    module: GraphModule,
    plan: Plan,
    quantized: QuantizedModel,
    rules: TargetSpec,
    device: torch.device,
) -> IntegerKernels:
    """Return the kernels in place of float computation: with integers, or with sums in ONNX Runtime's order."""
    kernels = IntegerKernels()
    if rules.int32_bias:
        kernels = integer_kernels(
            model,
            module=module,
            plan=plan,
            quantized=quantized,
            quantize_outputs=rules.quantize_outputs,
            device=device,
        )
    if device.type == "cpu":
        kernels.functions = _ordered_convs(model) | kernels.functions
    return kernels


@dataclass(frozen=True, eq=False)
class _Profile:
    """The errors of layers and of Concats' inputs, which add up over batches."""

    taps: Mapping[str, str]
    """Layers by the name of their output."""
    concats: Sequence[Join]
    plan: Plan
    kernels: IntegerKernels
    """Kernels of the quantized network."""
    hook: Hook
    """The quantized network's grids."""
    layers: dict[str, ErrorSums] = field(default_factory=dict)
    joined: dict[JoinedInput, ErrorSums] = field(default_factory=dict)

    def compared(self, fp_walk: Walk, q_walk: Walk, *, kept: Sequence[str]) -> tuple[Tensors, Tensors]:
        """Run both networks in step, each value being compared and let go as it comes, and return the `kept` ones.

        Args:
            fp_walk: The float network's values.
            q_walk: The quantized network's, the same in the same order.
            kept: Names of the network's outputs.
        """
        fp_kept: Tensors = {}
        q_kept: Tensors = {}
        shapes: dict[str, torch.Tensor] = {}
        for name, fp in fp_walk:
            same, q = next(q_walk)
            assert name == same
            # Of a Concat's inputs the shapes are enough.
            shapes[name] = torch.empty(fp.shape, device="meta")
            number = self.kernels.in_numbers({name: q})[name]
            if name in self.taps:
                layer = self.taps[name]
                error = ErrorSums.between(fp, number)
                self.layers[layer] = self.layers[layer] + error if layer in self.layers else error
            for join in self.concats:
                if join.output == name:
                    self._add_joined(join, shapes | {name: fp}, self.hook(name, number))
            if name in kept:
                fp_kept[name], q_kept[name] = fp, q
            del fp, q, number
        return fp_kept, q_kept

    def _add_joined(self, join: Join, fp: Mapping[str, torch.Tensor], q: torch.Tensor) -> None:
        for each, error in joined_errors(join, joined_inputs(join, self.plan), fp, q).items():
            self.joined[each] = self.joined.get(each, ErrorSums()) + error


@dataclass(frozen=True, eq=False)
class SimulateBatches:
    """The task to run both networks over some batches."""

    name: ClassVar[str] = "simulate"
    batches: Sequence[Batch]
    dataset: Dataset
    quantized: Shared[QuantizedModel]
    profile_samples: int
    plan: Plan | None = None
    """Plan of another target than the job's; None: the job's."""
    rules: TargetSpec | None = None

    def run(self, bench: Bench, *stored: StoredRows) -> Simulated:
        """Run the float and the quantized network over the batches."""
        del stored
        return simulate(
            bench.model,
            plan=self.plan or bench.plan,
            quantized=self.quantized.get(),
            rules=self.rules or bench.rules,
            batches=self.batches,
            inputs=functools.partial(bench.inputs_of, self.dataset),
            profile_samples=self.profile_samples,
            device=bench.device,
            progress=bench.progress,
            samples=bench.samples,
        )


def _quantizers(plan: Plan, quantized: QuantizedModel, kernels: IntegerKernels, *, device: torch.device) -> Hook:
    """Return a hook that replaces quantized values by the numbers that their codes stand for."""
    qparams = {
        name: TorchQParams.of(quantized.activations[name], num_dims=0, device=device) for name in plan.activations
    }

    def hook(name: str, value: torch.Tensor) -> torch.Tensor:
        if name in kernels.requantize:
            return kernels.requantize[name](value)
        return fake_quantize(value, qparams[name]) if name in qparams else value

    return hook


def simulated_constants(
    model: ir.Model, *, plan: Plan, quantized: QuantizedModel, rules: TargetSpec, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the quantized weights and biases by name of the initializer, as the target keeps them."""
    constants = {name: torch.as_tensor(own.weight, device=device) for name, own in quantized.recurrent.items()}
    for layer in layers_of(model):
        own = quantized.layers.get(layer.name)
        if own is None:
            continue
        values, source = own.bias, plan.input_of(layer.node)
        if rules.int32_bias and values is not None and source is not None and own.qparams.blocks is None:
            kept = quantize_bias(values, input_scale=quantized.activations[source].scale, weight=own.qparams)
            own, values = own.with_scale(kept.weight_scale), kept.values
        constants[name_of(layer.weight)] = channels_last(torch.as_tensor(own.weight, device=device))
        if values is not None and layer.bias is not None:
            constants[name_of(layer.bias)] = torch.as_tensor(values, device=device)
    return constants


def _ordered_convs(model: ir.Model) -> dict[str, TorchOp]:
    """Return convolutions that add in ONNX Runtime's order, by name of the node."""
    return {
        node_name(node): ordered_conv(NodeReader(node, opset_of(model)))
        for node in model.graph
        if node.op_type == "Conv" and node.domain in {"", "ai.onnx"}
    }


def _join(parts: Mapping[str, Sequence[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate(arrays) if arrays else np.zeros((0,), np.float32) for name, arrays in parts.items()}
