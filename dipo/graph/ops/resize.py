"""Resize: by torch's interpolate where it computes the same, otherwise axis by axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dipo.graph.ops.interpolation import COORDINATES, MODES, ROUNDINGS, Interpolation
from dipo.graph.ops.reader import NodeReader, TorchOp

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def resize(node: NodeReader) -> TorchOp:
    """Resize x by constant sizes or scales, by nearest, linear or cubic."""
    if node.opset < 11:
        raise node.refusal("before opset 11 it is not computed in torch: convert the model to opset 13 or later")
    if node.get_int("antialias", 0) or node.get_int("exclude_outside", 0):
        raise node.refusal("antialias and exclude_outside are not computed in torch")
    node.choice("keep_aspect_ratio_policy", "stretch", ("stretch",))
    node.ignore("extrapolation_value")  # for a mode that is refused
    how = Interpolation(
        mode=node.choice("mode", "nearest", MODES),
        coordinates=node.choice("coordinate_transformation_mode", "half_pixel", COORDINATES),
        rounding=node.choice("nearest_mode", "round_prefer_floor", ROUNDINGS),
        cubic_coefficient=node.get_float("cubic_coeff_a", -0.75),
    )
    if (how.mode, how.coordinates, how.rounding) == ("nearest", "asymmetric", "round_prefer_ceil"):
        # Ties between two elements fall in ONNX Runtime to a side that follows from no arithmetic of float32.
        raise node.refusal("mode 'nearest' with 'asymmetric' and 'round_prefer_ceil' is not computed in torch")
    sizes, scales = _by_axis(node)
    if how.coordinates == "align_corners" and not all(scale.is_integer() for scale in scales.values()):
        raise node.refusal("runtimes differ on 'align_corners' by a scale that is not whole: export it by its sizes")
    fast = _interpolate(node, how, sizes, scales)
    return _by_single_axes(how, sizes, scales) if fast is None else fast


def _by_axis(node: NodeReader) -> tuple[dict[int, int], dict[int, float]]:
    """Return the sizes and the scales by axis, of which one is empty, without axes that keep their size.

    The batch keeps its size whatever number was written for it, since another one may run through the network.
    """
    rank = node.rank(0)
    sizes, scales = node.constant_ints(3), node.constant_floats(2)
    if not sizes and not scales:
        raise node.refusal("it has neither constant sizes nor scales")
    axes = [axis % rank for axis in node.get_ints("axes") or range(rank)]
    if not sizes:
        return {}, {axis: scale for axis, scale in zip(axes, scales or (), strict=True) if scale != 1}
    old = node.shape(0) or (None,) * rank
    return {axis: size for axis, size in zip(axes, sizes, strict=True) if axis != 0 and old[axis] != size}, {}


def _by_single_axes(how: Interpolation, sizes: dict[int, int], scales: dict[int, float]) -> TorchOp:
    """Return a function that resizes one axis after the other."""

    def run(x: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
        for axis, size in sizes.items():
            x = how.along(x, axis, size=size, scale=size / x.shape[axis])
        for axis, scale in scales.items():
            x = how.along(x, axis, size=int(x.shape[axis] * scale), scale=scale)
        return x

    return run


def _interpolate(
    node: NodeReader, how: Interpolation, sizes: dict[int, int], scales: dict[int, float]
) -> TorchOp | None:
    """Return torch's interpolate with its arguments; None where it does not compute the same."""
    rank = node.rank(0)
    if rank not in _LINEAR or not (sizes or scales).keys() <= set(range(2, rank)):
        return None
    kept = (node.shape(0) or (None,) * rank)[2:]
    wanted = [sizes.get(axis, size) for axis, size in enumerate(kept, start=2)]
    known = [size for size in wanted if size is not None]
    if sizes and len(known) < len(wanted):
        return None
    factors = None if sizes else [scales.get(axis, 1.0) for axis in range(2, rank)]
    mode = _torch_mode(node, how, known if sizes else None, factors)
    if mode is None:
        return None
    align_corners = how.coordinates == "align_corners" if mode in _LINEAR.values() else None
    return lambda x, *_: F.interpolate(x, known if sizes else None, factors, mode, align_corners)


def _torch_mode(
    node: NodeReader, how: Interpolation, sizes: list[int] | None, scales: list[float] | None
) -> str | None:
    """Return the equivalent mode of torch's interpolate; None if it has none.

    `nearest` takes floor(i / scale), `nearest-exact` floor((i + 0.5) / scale), the linear modes half pixels or aligned
    corners.
    """
    coordinates, rounding = how.coordinates, how.rounding
    whole = _scales_are_whole(node, sizes, scales)
    if coordinates == "pytorch_half_pixel" and min(sizes or [2]) > 1 and min(scales or [1]) >= 1:
        coordinates = "half_pixel"  # they differ where a single element is left
    if how.mode == "linear" and (coordinates == "half_pixel" or (coordinates == "align_corners" and (sizes or whole))):
        return _LINEAR[node.rank(0)]
    if how.mode == "nearest" and (coordinates, rounding) == ("asymmetric", "floor"):
        return "nearest"
    if how.mode == "nearest" and (coordinates, rounding) == ("half_pixel", "round_prefer_ceil"):
        return "nearest-exact"
    if how.mode == "nearest" and (coordinates, rounding) == ("half_pixel", "round_prefer_floor") and whole:
        return "nearest-exact"  # no position lies halfway, so the tie's direction does not matter
    return None


def _scales_are_whole(node: NodeReader, sizes: list[int] | None, scales: list[float] | None) -> bool:
    if scales is not None:
        return all(scale.is_integer() for scale in scales)
    old = (node.shape(0) or ())[2:]
    return sizes is not None and all(size is not None and new % size == 0 for new, size in zip(sizes, old, strict=True))
