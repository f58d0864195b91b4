"""The float and the quantized network side by side, over one worker's samples.

A worker holds what the units to come still read: of the float network numbers, of the quantized one integer codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dipo.algo.activation_cache import Batch, CachedActivation, Rows, StoredRows
from dipo.algo.collectives import Collectives
from dipo.algo.fitted_values import fitted_values
from dipo.graph.accessors import name_of, node_name
from dipo.graph.layers import layers_of
from dipo.graph.plan import Plan, QuantizedLayer, QuantizedModel
from dipo.graph.sample_axis import SampleAxes
from dipo.graph.torch_module import GraphModule, Hook, channels_last
from dipo.graph.units import Unit
from dipo.quant.functional import TorchQParams, fake_quantize
from dipo.quant.spec import QParams


@dataclass(frozen=True, eq=False)
class LayerOutputs:
    """A layer's outputs with the bias that it has before a change."""

    layer: str
    value: str
    """Name of its output."""
    bias: np.ndarray
    """The bias [C] that is part of the output."""
    batches: list[torch.Tensor]
    """The output for this worker's batches, in order; `advance` takes them out."""


class NetworkPair:
    """Both networks in front of the next unit. Every worker makes the same calls at the same time."""

    def __init__(
        self,
        model: ir.Model,
        *,
        plan: Plan,
        units: Sequence[Unit],
        quantized: QuantizedModel,
        batches: Sequence[Batch],
        owners: Sequence[int],
        collectives: Collectives,
        device: torch.device,
        samples: SampleAxes | None = None,
    ) -> None:
        """Prepare the networks without samples: `read_samples` or `take_inputs` bring them.

        Args:
            model: The float network, normalised.
            plan: Layers and activations that are quantized.
            units: All units, in order.
            quantized: Codes and scales of every layer and activation.
            batches: This worker's batches.
            owners: The worker that holds each of the run's batches.
            collectives: Adds up over the workers.
            device: Device of the tensors.
            samples: Where the samples lie in each value; None: on the first axis of all.
        """
        self.samples = samples or SampleAxes()
        self.model, self.plan, self.units, self.collectives, self.device = model, plan, list(units), collectives, device
        self.batches, self.owners = list(batches), list(owners)
        self.nodes = {node_name(node): node for node in model.graph}
        self.layer_layouts = {
            layer.name: (name_of(layer.weight), None if layer.bias is None else name_of(layer.bias))
            for layer in layers_of(model)
        }
        self.layers, self.activations = dict(quantized.layers), dict(quantized.activations)
        self.recurrent = {
            name: torch.tensor(weight.weight, device=device) for name, weight in quantized.recurrent.items()
        }
        self.rows = _rows(batches)
        self.with_float = True
        self.fp: dict[str, CachedActivation] = {}
        self.q: dict[str, CachedActivation] = {}

    def read_samples(self, inputs: Callable[[Batch], Mapping[str, torch.Tensor]], *, with_float: bool) -> None:
        """Read the samples and stand in front of the first unit.

        Args:
            inputs: Reads a batch: the network's inputs by name.
            with_float: Whether the float network is carried along: reconstruction needs it, bias correction does not.
        """
        self.with_float = with_float
        read = [inputs(batch) for batch in self.batches]
        names = [name_of(value) for value in self.model.graph.inputs]
        self.q = {name: self.gather(name, [channels_last(part[name]) for part in read], codes=True) for name in names}
        kept = names if with_float else []
        self.fp = {name: self.gather(name, [channels_last(part[name]) for part in read], codes=False) for name in kept}

    def take_inputs(self, fp: Mapping[str, Sequence[StoredRows]], q: Mapping[str, Sequence[StoredRows]]) -> None:
        """Take the inputs of any unit, as another pair cached them, and stand in front of that unit.

        Args:
            fp: Parts of the float network's values, by name of the value.
            q: The same of the quantized network's, with the same quantization parameters as this pair's.
        """
        self.fp = {name: self._restore(name, parts, codes=False) for name, parts in fp.items()}
        self.q = {name: self._restore(name, parts, codes=True) for name, parts in q.items()}

    def _restore(self, name: str, parts: Sequence[StoredRows], *, codes: bool) -> CachedActivation:
        qparams = self._code_qparams(name, codes=codes)
        return CachedActivation.restore(parts, qparams, self.samples.of(name), self.device)

    def capture(self, names: Sequence[str]) -> tuple[dict[str, CachedActivation], dict[str, CachedActivation]]:
        """Return any values of the float and of the quantized network, by name, for the samples that were read."""
        nodes = list(self.model.graph)
        module = self.module(nodes, names)
        fp = self.run(module, self.reads(self.fp, module), constants={}, hook=None, codes=False)
        weights, hook = self.weights(list(self.layers)), self.hook(nodes)
        return fp, self.run(module, self.reads(self.q, module), constants=weights, hook=hook, codes=True)

    def adopt(self, layers: Mapping[str, QuantizedLayer], activations: Mapping[str, QParams]) -> None:
        """Replace layers, and activations with all those that share their scales, by the results of a unit."""
        self.layers.update(layers)
        self.activations.update(activations)
        for value, source in self.plan.aliases.items():
            if source in activations:
                self.activations[value] = activations[source]

    def nodes_of(self, unit: Unit) -> list[ir.Node]:
        """Return the nodes that compute a unit, in topological order: those that it makes again, then its own."""
        return [self.nodes[name] for name in (*unit.remade, *unit.nodes)]

    def fitted(self, unit: Unit) -> tuple[str, ...]:
        """Return the names of the values by which a unit is fitted to the float network: see `fitted_values`."""
        return fitted_values([self.nodes[name] for name in unit.nodes], unit.outputs)

    def targets(self, unit: Unit) -> dict[str, CachedActivation]:
        """Return the next unit's outputs in the float network, and the values that it is fitted by, by name."""
        names = list(dict.fromkeys((*unit.outputs, *self.fitted(unit))))
        module = self.module(self.nodes_of(unit), names)
        return self.run(module, self.reads(self.fp, module), constants={}, hook=None, codes=False)

    def layer_outputs(self, unit: Unit) -> LayerOutputs | None:
        """Return the outputs of the layer of a unit with one; None where the layer is not quantized or has no bias.

        None too for a unit that holds more than a layer, since samples cannot be told apart between its layers.
        """
        name = unit.only_layer
        layer = None if name is None else self.layers.get(name)
        if name is None or layer is None or layer.bias is None:
            return None
        first = self.nodes[name]
        value = name_of(first.outputs[0])
        module, weights = self.module([first], [value]), self.weights([name])
        batches = [module(values, constants=weights)[value] for values in self.reads(self.q, module)]
        return LayerOutputs(name, value, layer.bias, batches)

    def advance(self, unit: Unit, *, outputs: LayerOutputs | None = None) -> None:
        """Run the quantized unit, as it now is, over all samples.

        Args:
            unit: The unit.
            outputs: Its layer's outputs before its bias, and nothing else, was changed: the change is added to them.
        """
        if outputs is not None:
            self._advance_from(outputs, [self.nodes[name] for name in unit.nodes], unit)
            return
        nodes = self.nodes_of(unit)
        module = self.module(nodes, unit.outputs)
        self.q.update(
            self.run(
                module,
                self.reads(self.q, module),
                constants=self.weights(unit.layers),
                hook=self.hook(nodes),
                codes=True,
            )
        )

    def _advance_from(self, outputs: LayerOutputs, nodes: Sequence[ir.Node], unit: Unit) -> None:
        bias = self.layers[outputs.layer].bias
        assert bias is not None
        shift = torch.from_numpy(bias - outputs.bias).to(self.device)
        shift = shift.view(-1, *(1,) * (outputs.batches[0].ndim - 2))
        rest = self.module(nodes[1:], unit.outputs)
        # Each batch is let go as soon as what follows has read it: floats of all samples are large.
        shifted = ({outputs.value: outputs.batches.pop(0).add_(shift)} for _ in self.rows)
        self.q.update(self.run(rest, shifted, constants=self.recurrent, hook=self.hook(nodes), codes=True))

    def run(
        self,
        module: GraphModule,
        inputs: Iterable[Mapping[str, torch.Tensor]],
        *,
        constants: Mapping[str, torch.Tensor],
        hook: Hook | None,
        codes: bool,
    ) -> dict[str, CachedActivation]:
        """Run a module over all batches and return its outputs by name."""
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in module.outputs}
        for batch in inputs:
            for name, value in module(batch, hook=hook, constants=constants).items():
                parts[name].append(CachedActivation.encode(value, self._code_qparams(name, codes=codes)))
        return {
            name: CachedActivation.gather(values, self._code_qparams(name, codes=codes), self.samples.of(name))
            for name, values in parts.items()
        }

    def gather(self, name: str, batches: Sequence[torch.Tensor], *, codes: bool) -> CachedActivation:
        """Cache a value of all batches; with `codes`, as the codes of the quantized network where it has any."""
        qparams = self._code_qparams(name, codes=codes)
        encoded = [CachedActivation.encode(batch, qparams) for batch in batches]
        return CachedActivation.gather(encoded, qparams, self.samples.of(name))

    def _code_qparams(self, name: str, *, codes: bool) -> TorchQParams | None:
        """Return the scale and zero point of the codes that a value is cached as; None where it is cached as floats."""
        return self._torch_qparams(name) if codes and name in self.activations else None

    def forget(self, unit: Unit) -> None:
        """Drop what no later unit reads."""
        needed = {name for later in self.units[unit.index + 1 :] for name in later.inputs}
        for captures in (self.q, self.fp):
            for name in [name for name in captures if name not in needed]:
                del captures[name]

    def read(
        self, captures: Mapping[str, CachedActivation], names: Sequence[str], rows: Rows
    ) -> dict[str, torch.Tensor]:
        """Return some samples of cached values, float32, by name."""
        num = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        return self.sizes(names, num) | {name: captures[name].at(rows) for name in names if name in captures}

    def sizes(self, names: Iterable[str], num_samples: int) -> dict[str, torch.Tensor]:
        """Return those of the values that follow from the number of samples."""
        counted = self.samples.counted
        return {name: counted[name].of(num_samples, self.device) for name in names if name in counted}

    def reads(self, captures: Mapping[str, CachedActivation], module: GraphModule) -> Iterator[dict[str, torch.Tensor]]:
        """Return an iterator over a module's inputs by name, batch by batch."""
        return (self.read(captures, module.inputs, rows) for rows in self.rows)

    def module(self, nodes: Sequence[ir.Node], outputs: Sequence[str]) -> GraphModule:
        """Return a module of some of the graph's nodes, with the float network's constants."""
        return (
            GraphModule(self.model, nodes=nodes, outputs=outputs)
            .to(self.device)
            .eval()
            .requires_grad_(requires_grad=False)
        )

    def weights(self, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the quantized weights and the biases of some layers, and recurrent ones, by name of the constant."""
        result = dict(self.recurrent)
        for name in layers:
            if name not in self.layers:
                continue
            weight, bias = self.layer_layouts[name]
            result[weight] = channels_last(torch.tensor(self.layers[name].weight, device=self.device))
            if bias is not None and self.layers[name].bias is not None:
                result[bias] = torch.tensor(self.layers[name].bias, device=self.device)
        return result

    def hook(self, nodes: Sequence[ir.Node]) -> Hook:
        """Return a hook that fake-quantizes the nodes' outputs."""
        made = {name_of(value) for node in nodes for value in node.outputs if value.name}
        qparams = {
            name: self._torch_qparams(name)
            for name in made
            if name in self.activations and name not in self.plan.aliases
        }
        return lambda name, value: fake_quantize(value, qparams[name]) if name in qparams else value

    def _torch_qparams(self, name: str) -> TorchQParams:
        return TorchQParams.of(self.activations[name], num_dims=0, device=self.device)


def _rows(batches: Sequence[Batch]) -> list[slice]:
    """Return each batch's rows in the worker's cached values."""
    stops = np.cumsum([len(batch) for batch in batches])
    return [slice(int(stop) - len(batch), int(stop)) for batch, stop in zip(batches, stops, strict=True)]
