"""Resize: the forms that torch's interpolate computes exactly."""

from __future__ import annotations

import torch.nn.functional as F

from dipo.graph.ops.reader import NodeReader, TorchOp

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize(node: NodeReader) -> TorchOp:
    """Resize the spatial dimensions of x [N, C, ...] by constant sizes or scales, by nearest or linear."""
    if node.opset < 11:
        raise node.refusal("before opset 11 it is not computed in torch: convert the model to opset 13 or later")
    if node.get_int("antialias", 0) or node.get_int("exclude_outside", 0):
        raise node.refusal("antialias and exclude_outside are not computed in torch")
    node.choice("keep_aspect_ratio_policy", "stretch", ("stretch",))
    node.ignore("cubic_coeff_a", "extrapolation_value")  # for modes that are refused
    sizes, scales = _target(node)
    mode = _torch_mode(node, sizes, scales)
    align_corners = None
    if mode in _LINEAR.values():
        align_corners = node.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners"
    return lambda x, *_: F.interpolate(x, sizes, scales, mode, align_corners)


def _target(node: NodeReader) -> tuple[list[int] | None, list[float] | None]:
    """Return the spatial sizes and the spatial scales, of which one is None."""
    rank = node.rank(0)
    sizes, scales = node.constant_ints(3), node.constant_floats(2)
    given = sizes or scales
    if not given or rank not in _LINEAR:
        raise node.refusal(f"torch resizes by constant sizes or scales and 1 to 3 spatial dimensions, not {rank - 2}")
    axes = [axis % rank for axis in node.get_ints("axes") or range(rank)]
    by_axis: dict[int, float] = dict(zip(axes, given, strict=True))
    spatial = range(2, rank)
    channels = node.shape(0)
    kept = (None, channels and channels[1]) if sizes else (1.0, 1.0)
    if any(axis not in by_axis for axis in spatial) or any(
        axis in by_axis and by_axis[axis] != kept[axis] and kept[axis] is not None for axis in (0, 1)
    ):
        raise node.refusal("torch resizes all spatial dimensions and no others")
    if sizes:
        return [int(by_axis[axis]) for axis in spatial], None
    return None, [by_axis[axis] for axis in spatial]


def _torch_mode(node: NodeReader, sizes: list[int] | None, scales: list[float] | None) -> str:
    """Return the equivalent mode of torch's interpolate.

    `nearest` takes floor(i / scale), `nearest-exact` floor((i + 0.5) / scale), the linear modes half pixels or aligned
    corners.
    """
    mode = node.choice("mode", "nearest", ("nearest", "linear"))
    coordinates = node.choice("coordinate_transformation_mode", "half_pixel", _COORDINATES)
    rounding = node.get_string("nearest_mode", "round_prefer_floor")
    whole = _scales_are_whole(node, sizes, scales)
    if coordinates == "pytorch_half_pixel" and min(sizes or [2]) > 1 and min(scales or [1]) >= 1:
        coordinates = "half_pixel"  # they differ where a single element is left
    if mode == "linear" and (coordinates == "half_pixel" or (coordinates == "align_corners" and (sizes or whole))):
        return _LINEAR[node.rank(0)]
    if mode == "nearest" and (coordinates, rounding) == ("asymmetric", "floor"):
        return "nearest"
    if mode == "nearest" and (coordinates, rounding) == ("half_pixel", "round_prefer_ceil"):
        return "nearest-exact"
    if mode == "nearest" and (coordinates, rounding) == ("half_pixel", "round_prefer_floor") and whole:
        return "nearest-exact"  # no position lies halfway, so the tie's direction does not matter
    raise node.refusal(f"mode '{mode}' with '{coordinates}' and '{rounding}' is not computed in torch")


def _scales_are_whole(node: NodeReader, sizes: list[int] | None, scales: list[float] | None) -> bool:
    if scales is not None:
        return all(scale.is_integer() for scale in scales)
    old = (node.shape(0) or ())[2:]
    return sizes is not None and all(size is not None and new % size == 0 for new, size in zip(sizes, old, strict=True))
