"""Integer kernels in torch: the same codes as ONNX Runtime's, ties of rounding included.

A quantized layer adds products of integers and rounds their sum to a code. Computed with the numbers that the codes
stand for, the sum has rounding errors of its own, and where it lies half way between two codes the error decides. One
step more or less then grows through the layers after it. Here sums are exact and rounded by the kernels' own formulas,
those of ONNX Runtime's CPU provider on x86 (docs/deployed.md).

Symbols: q a code, z its zero point, s its scale; x, a, b inputs, w a weight, y the output. `fl` is rounding to float32,
`round` to the nearest integer with ties to even. Kernels hand on q - z to each other, and to others the
numbers s * (q - z), from which codes follow without error.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from dipo.algo.kernel_matching import Grid, KernelMatch, keep_integer, match_kernel
from dipo.graph.accessors import name_of, node_name
from dipo.graph.layers import Layer, layer_of
from dipo.graph.one_by_one import of_one, with_function
from dipo.graph.ops.reader import TorchOp
from dipo.graph.plan import Plan, QuantizedLayer, QuantizedModel
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.quant.bias import quantize_bias

PART = 1 << 23
"""Largest number of elements of a value that a kernel computes at a time, where it can be parted."""
EXACT = 1 << 24
"""float32 adds integers without error while no partial sum is larger."""

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class IntegerKernels:
    """Kernels that take the place of float computation in a network that `GraphModule` runs."""

    functions: dict[str, TorchOp] = field(default_factory=dict)
    """Kernels by name of the node. The value that a kernel returns is not rounded yet."""
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    """Constants by name of the initializer: codes less zero points, and biases as int32 codes."""
    requantize: dict[str, Function] = field(default_factory=dict)
    """By name of the value: functions from a kernel's result to the numbers that the value's codes stand for."""
    units: dict[str, torch.Tensor] = field(default_factory=dict)
    """By name of a layer's output: the scale of the accumulator that its kernel returns."""

    def in_numbers(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the values with accumulators multiplied by their scales."""
        return {name: x * self.units[name] if name in self.units else x for name, x in values.items()}

    def module(self, module: GraphModule) -> GraphModule:
        """Return the same module with these kernels; it shares its constants."""
        changed = copy.copy(module)
        changed.steps = [
            dataclasses.replace(step, function=with_function(step.function, self.functions[step.node]))
            if step.node in self.functions
            else step
            for step in module.steps
        ]
        return changed


def integer_kernels(
    model: ir.Model,
    *,
    module: GraphModule,
    plan: Plan,
    quantized: QuantizedModel,
    quantize_outputs: bool,
    device: torch.device,
) -> IntegerKernels:
    """Return the kernels of nodes between codes of at most 8 bits, and of matrix products from such codes to floats.

    A layer whose channels have a scale for each block has none: its products have no common scale.

    Args:
        model: The float network.
        module: The whole network as a module.
        plan: Layers and activations that are quantized.
        quantized: Codes and scales.
        quantize_outputs: The network's outputs are quantized too.
        device: Device to run on.
    """
    functions = {step.node: of_one(step.function) for step in module.steps}
    kernels = IntegerKernels()
    sites = {}
    for node in (node for node in model.graph if node_name(node) in functions):
        site = match_kernel(node, functions, plan=plan, quantized=quantized, quantize_outputs=quantize_outputs)
        own = quantized.layers[node_name(node)] if node_name(node) in plan.layers else None
        suits = node.op_type in INTEGER_FUNCTIONS if own is None else own.qparams.blocks is None
        if site is not None and suits:
            sites[node_name(node)] = site
    sites = keep_integer(model, sites, plan=plan)
    for node in model.graph:
        name, site = node_name(node), sites.get(node_name(node))
        if site is None:
            continue
        layer = layer_of(node)
        if layer is not None and name in plan.layers:
            _add_layer(kernels, layer, quantized.layers[name], site, function=functions[name], device=device)
        else:
            assert site.output is not None
            function = INTEGER_FUNCTIONS[node.op_type](site, functions[name])
            kernels.functions[name] = functools.partial(_in_parts, function)
            _finish(kernels, site, _less(site.output.zero_point))
    return kernels


def _in_parts(function: TorchOp, *xs: torch.Tensor) -> torch.Tensor:
    """Run a function on a part of the first axis at a time, where its inputs are large and of one shape.

    Its temporary tensors, in float64 some, would else take several times the memory of its output. Every number of the
    output is computed from the same numbers in any case: each is exact, or of one element of every input alone.
    """
    first = xs[0]
    if first.numel() <= PART or any(x.shape != first.shape for x in xs):
        made = function(*xs)
        assert isinstance(made, torch.Tensor)
        return made
    size = max(1, PART // first[0].numel())
    whole: torch.Tensor | None = None
    for start in range(0, len(first), size):
        made = function(*(x[start : start + size] for x in xs))
        assert isinstance(made, torch.Tensor)
        if whole is None:
            last = made.ndim == 4 and made.is_contiguous(memory_format=torch.channels_last)
            whole = torch.empty(
                (len(first), *made.shape[1:]), dtype=made.dtype, device=made.device,
                memory_format=torch.channels_last if last else torch.contiguous_format,
            )  # fmt: skip
        whole[start : start + size] = made
    assert whole is not None
    return whole


def _less(zero_point: int) -> Function:
    return lambda codes: codes.round().sub_(zero_point)


def _finish(kernels: IntegerKernels, site: KernelMatch, scaled: Function) -> None:
    """Round the kernel's result to codes, and drop the activation function that the codes' limits stand for.

    Args:
        kernels: The kernels so far; they are changed.
        site: The node and the grids that it computes between.
        scaled: Function from the kernel's result to codes less the zero point, rounded or not.
    """
    grid = site.output
    assert grid is not None
    low, high = site.limits

    def requantize(value: torch.Tensor) -> torch.Tensor:
        codes = scaled(value).round_().clamp_(low - grid.zero_point, high - grid.zero_point)
        return codes if grid.step == 1 else codes.mul_(grid.step)

    kernels.requantize[site.value] = requantize
    if site.activation is not None:
        kernels.functions[site.activation] = lambda x, *_: x


def _add_layer(
    kernels: IntegerKernels,
    layer: Layer,
    own: QuantizedLayer,
    site: KernelMatch,
    *,
    function: TorchOp,
    device: torch.device,
) -> None:
    """Add the kernel of a Conv, Gemm or MatMul: q_y = round(fl(acc) * m) + z_y.

    acc = sum (q_x - z_x) (q_w - z_w) + q_b in int32, m = fl(fl(s_x * s_w) / s_y), one for each channel where s_w is.
    Without codes for the output, y = fl(fl(acc) * fl(s_x * s_w)).
    """
    source = site.inputs[0]
    codes, scale, bias_codes = _layer_codes(own, source)
    largest = _largest_sum(codes, layer.channel_axis, source)
    # On a GPU a convolution may go a way that is not exact in float32.
    dtype = torch.float32 if largest < EXACT and device.type == "cpu" else torch.float64
    kernels.constants[name_of(layer.weight)] = channels_last(torch.as_tensor(codes, device=device).to(dtype))
    num_dims = layer.num_spatial + 1
    addend: torch.Tensor | None = None
    if layer.bias is not None and bias_codes is not None:
        fits = largest + int(np.abs(bias_codes.astype(np.int64)).max()) < EXACT
        kernels.constants[name_of(layer.bias)] = torch.as_tensor(bias_codes * fits, device=device).to(dtype)
        addend = None if fits else _per_channel(bias_codes.astype(np.float64), num_dims, device)

    def accumulate(x: torch.Tensor, *constants: torch.Tensor) -> torch.Tensor:
        return _in_parts(lambda part: products_of(part, *constants), x) if num_dims > 1 else products_of(x, *constants)

    def products_of(x: torch.Tensor, *constants: torch.Tensor) -> torch.Tensor:
        products = function(less_zero_point(x, source).to(dtype), *constants)
        assert isinstance(products, torch.Tensor)
        return (products if addend is None else products + addend).to(torch.float32)

    unit = source.scale * scale
    if site.output is None:
        factor = _per_channel(unit, num_dims, device)
        kernels.functions[layer.name] = lambda *inputs: accumulate(*inputs).mul_(factor)
        return
    multiplier = _per_channel(unit / site.output.scale, num_dims, device)
    kernels.functions[layer.name] = accumulate
    kernels.units[name_of(layer.output)] = _per_channel(unit, num_dims, device)
    _finish(kernels, site, lambda acc: acc * multiplier)


def less_zero_point(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the codes of a kernel's input less their zero point, in float32; this may be `x` itself."""
    return x if grid.step == 1 else x.mul(1 / grid.step).round_()


def _layer_codes(layer: QuantizedLayer, source: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the codes of the weight less its zero point, its scale, and the codes of the bias."""
    scale, bias_codes = layer.qparams.scale, None
    if layer.bias is not None:
        bias = quantize_bias(layer.bias, input_scale=np.asarray(source.scale), weight=layer.qparams)
        scale, bias_codes = bias.weight_scale, bias.codes
    kept = layer.with_scale(scale)
    _, zero_point = kept.qparams.broadcast_to(kept.codes.ndim)
    return kept.codes - zero_point, scale, bias_codes


def _largest_sum(codes: np.ndarray, axis: int, source: Grid) -> int:
    """Return an upper bound of the layer's partial sums of products, whatever it reads and in whatever order."""
    others = tuple(i for i in range(codes.ndim) if i != axis)
    ends = np.stack([codes.astype(np.int64) * (end - source.zero_point) for end in (source.qmin, source.qmax)])
    positive = np.maximum(ends.max(axis=0), 0).sum(axis=others)
    negative = np.maximum(-ends.min(axis=0), 0).sum(axis=others)
    return int(max(positive.max(), negative.max()))


def _per_channel(scale: np.ndarray, num_dims: int, device: torch.device) -> torch.Tensor:
    """Return the scales shaped to broadcast against an output with `num_dims` - 1 dimensions after the channels."""
    return torch.as_tensor(scale.reshape(-1, *[1] * (num_dims - 1)) if scale.ndim else scale, device=device)


def _add(site: KernelMatch, _: TorchOp) -> TorchOp:
    """Return the kernel of an Add: q_y = round(fl(r_a * q_a + fl(r_b * q_b + c))).

    c = fl(z_y - fl(r_a * z_a + fl(r_b * z_b))), r_a = fl(s_a / s_y), r_b = fl(s_b / s_y). Where a product has no `fl`
    of its own, it and the sum are rounded once.
    """
    (a, b), y = site.inputs, site.output
    assert y is not None
    ratio_a, ratio_b = a.scale / y.scale, b.scale / y.scale
    zeros = np.float32(np.float64(ratio_a) * a.zero_point + np.float64(ratio_b * np.float32(b.zero_point)))
    fixed = np.float32(y.zero_point) - zeros

    def add(xa: torch.Tensor, xb: torch.Tensor) -> torch.Tensor:
        # A product of a code and a float32 is exact in float64.
        qa = less_zero_point(xa, a).add(a.zero_point).double()
        qb = less_zero_point(xb, b).add(b.zero_point).double()
        inner = qb.mul_(float(ratio_b)).add_(float(fixed)).float()
        return (qa.mul_(float(ratio_a)) + inner).float()

    return add


def _mul(site: KernelMatch, _: TorchOp) -> TorchOp:
    """Return the kernel q_y = round(fl(fl((q_a - z_a) (q_b - z_b) * r) + z_y)), r = fl(fl(s_a * s_b) / s_y)."""
    (a, b), y = site.inputs, site.output
    assert y is not None
    ratio = float(a.scale * b.scale / y.scale)
    return lambda xa, xb: less_zero_point(xa, a).mul(less_zero_point(xb, b)).mul_(ratio).add_(y.zero_point)


def _global_average_pool(site: KernelMatch, _: TorchOp) -> TorchOp:
    """Return the kernel q_y = round(fl(fl(sum (q_x - z_x)) * r)) + z_y over n numbers, r = fl(s_x / fl(s_y * n))."""
    (x,), y = site.inputs, site.output
    assert y is not None

    def pool(values: torch.Tensor) -> torch.Tensor:
        axes = tuple(range(2, values.ndim))
        size = np.float32(np.prod([values.shape[axis] for axis in axes]))
        total = less_zero_point(values, x).sum(axes, dtype=torch.float64, keepdim=True).float()
        return total.mul_(float(x.scale / (y.scale * size))).round_().add_(y.zero_point)

    return pool


def _average_pool(site: KernelMatch, function: TorchOp) -> TorchOp:
    """Return the kernel q_y = round(fl(fl(mean / s_y) + z_y)), with the mean of the numbers in float32."""
    (x,), y = site.inputs, site.output
    assert y is not None

    def pool(values: torch.Tensor) -> torch.Tensor:
        mean = function(values if x.step != 1 else values * float(x.scale))
        assert isinstance(mean, torch.Tensor)
        return mean.div(float(y.scale)).add_(y.zero_point)

    return pool


INTEGER_FUNCTIONS: Mapping[str, Callable[[KernelMatch, TorchOp], TorchOp]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Mul": _mul,
}
"""Operators without weights; their functions give codes with the zero point, before they are rounded."""
