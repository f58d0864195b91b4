"""What each output of a layer reads, for any choice of its outputs, whatever the operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dipo.graph.accessors import opset_of
from dipo.graph.layers import Layer
from dipo.graph.ops.reader import TorchOp
from dipo.graph.torch_ops import bind
from dipo.graph.weight_layout import WeightLayout


@dataclass(frozen=True, eq=False)
class Windows:
    """Where the outputs of a convolution read its input, for inputs of one size."""

    places: torch.Tensor
    """Place in the input, [outputs, kernel positions], int64; 0 where it is padding."""
    inside: torch.Tensor | None
    """1 where it is not, 0 where it is; float32, likewise; None: nowhere is padding."""
    inputs: int
    """Number of places of an input."""

    @staticmethod
    def of(function: TorchOp, sizes: Sequence[int], layout: WeightLayout) -> Windows:
        """Find the places by the convolution itself, so that every attribute is obeyed.

        Its input is the number of each place, from 1, and its kernels are one at a single position and zero elsewhere.

        Args:
            function: Torch function of the convolution, for a single group.
            sizes: Spatial sizes of the input.
            layout: Layout of its weight.
        """
        kernel, inputs = layout.shape[2:], math.prod(sizes)
        positions = math.prod(kernel)
        one_hot = torch.eye(positions, dtype=torch.float64).view(positions, 1, *kernel)
        numbers = torch.arange(1, inputs + 1, dtype=torch.float64).view(1, 1, *sizes)
        read = function(numbers, one_hot.transpose(0, 1) if layout.inputs_first else one_hot, None)
        assert isinstance(read, torch.Tensor)
        found = read[0].reshape(positions, -1).t().round().long()
        padded = found == 0
        inside = (~padded).float() if bool(padded.any()) else None
        return Windows((found - 1).clamp_min(0).contiguous(), inside, inputs)


class WindowReader:
    """Reads a layer's input and output as rows: one for each position, for each group."""

    def __init__(self, layout: WeightLayout, function: TorchOp | None) -> None:
        """Find nothing yet.

        Args:
            layout: Layout of the layer's weight.
            function: Torch function of a convolution, for a single group; None for other layers.
        """
        self.layout, self.function = layout, function
        self._windows: dict[tuple[int, ...], Windows] = {}

    @staticmethod
    def of(layer: Layer, model: ir.Model) -> WindowReader:
        """Return the reader of a layer."""
        if not layer.layout.spatial:
            return WindowReader(layer.layout, None)
        attributes = [each for name, each in layer.node.attributes.items() if name not in ("group", "kernel_shape")]
        own = ir.AttrInt64s("kernel_shape", list(layer.shape[2:]))
        node = ir.Node(layer.node.domain, layer.op_type, [ir.Value(), ir.Value()], [*attributes, own])
        return WindowReader(layer.layout, bind(node, opset_of(model)))

    def takes(self, x: torch.Tensor) -> bool:
        """Return whether each position of an input reads a weight of its own group: not where weights are broadcast."""
        lead = self.layout.shape[:-2]
        if self.layout.spatial or self.layout.groups == 1:
            return True
        batch = np.broadcast_shapes(x.shape[:-2], lead)
        return batch[len(batch) - len(lead) :] == lead

    def count(self, x: torch.Tensor) -> int:
        """Return the number of positions of an input, in a group."""
        if self.layout.spatial:
            return len(x) * len(self._of_size(x).places)
        if x.ndim < 2:
            return 1
        return math.prod(self._stacked(x).shape[:-1]) // self.layout.groups

    def inputs(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return what some positions read, [G, chosen, D], D = kernel positions x inputs as in `WeightLayout`.

        Args:
            x: The layer's input.
            chosen: Numbers of the positions.
        """
        groups = self.layout.groups
        if not self.layout.spatial:
            return self._rows(self._stacked(x), chosen)
        windows = self._of_size(x)
        outputs = len(windows.places)
        sample, output = chosen // outputs, chosen % outputs
        places = windows.places[output] + (sample * windows.inputs)[:, None]
        pixels = x.movedim(1, -1).reshape(-1, x.shape[1])
        read = pixels.index_select(0, places.flatten()).view(*places.shape, -1)
        if windows.inside is not None:
            read *= windows.inside[output][..., None]
        if groups == 1:
            return read.reshape(1, len(places), -1)
        apart = read.view(*places.shape, groups, -1).permute(2, 0, 1, 3)
        return apart.reshape(groups, len(places), -1)

    def outputs(self, y: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return the outputs at some positions, [G, chosen, O]; see `inputs`."""
        if not self.layout.spatial:
            return self._rows(self._stacked(y), chosen)
        pixels = y.movedim(1, -1).reshape(-1, y.shape[1])
        own = pixels[chosen]
        return own.view(len(own), self.layout.groups, -1).transpose(0, 1)

    def _of_size(self, x: torch.Tensor) -> Windows:
        sizes = tuple(x.shape[2:])
        if sizes not in self._windows:
            assert self.function is not None
            found = Windows.of(self.function, sizes, self.layout)
            inside = None if found.inside is None else found.inside.to(x.device)
            self._windows[sizes] = Windows(found.places.to(x.device), inside, found.inputs)
        return self._windows[sizes]

    def _stacked(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input of a matrix product with the dimensions that a stack of matrices spreads it over."""
        x = x if x.ndim > 1 else x[None]
        if self.layout.groups == 1:
            return x
        return x.expand(*np.broadcast_shapes(x.shape[:-2], self.layout.shape[:-2]), *x.shape[-2:])

    def _rows(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        groups = self.layout.groups
        if groups == 1:
            rows = x.reshape(1, -1, x.shape[-1])
        else:
            rows = x.reshape(-1, groups, *x.shape[-2:]).transpose(0, 1).reshape(groups, -1, x.shape[-1])
        return rows[:, chosen]
