"""Resize and Upsample: by torch's interpolate where it computes the same, otherwise axis by axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.interpolation import COORDINATES, CROP, MODES, ROUNDINGS, Interpolation
from dipo.graph.ops.reader import NodeReader, Numbers, TorchOp

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_POLICIES = ("stretch", "not_larger", "not_smaller")
_TIED = ("nearest", "half_pixel_symmetric")
"""A mode in which elements lie half way between two, by scales that are not those of the sizes."""
_OLD = 11
"""Before this operator set, positions are the output's over the scale."""


@dataclass(frozen=True)
class _Goal:
    """What a Resize makes of each axis, as far as it is known: axes that keep their size are left out."""

    sizes: Mapping[int, int]
    """Sizes by axis, or none."""
    scales: Mapping[int, float]
    """Scales by axis, or none."""


def resize(node: NodeReader) -> TorchOp:
    """Resize x by sizes or scales, constant or computed; by nearest, linear or cubic."""
    if node.opset < _OLD:
        return _scaled(node, node.floats(1))
    how = Interpolation(
        mode=node.choice("mode", "nearest", MODES),
        coordinates=node.choice("coordinate_transformation_mode", "half_pixel", COORDINATES),
        rounding=node.choice("nearest_mode", "round_prefer_floor", ROUNDINGS),
        cubic_coefficient=node.get_float("cubic_coeff_a", -0.75),
        exclude_outside=bool(node.get_int("exclude_outside", 0)),
        antialias=bool(node.get_int("antialias", 0)),
        extrapolation=node.get_float("extrapolation_value", 0.0),
    )
    scales, sizes, roi = node.floats(2), node.ints(3), node.floats(1)
    policy = node.choice("keep_aspect_ratio_policy", "stretch", _POLICIES)
    if policy != "stretch" and (how.coordinates == CROP or (how.mode, how.coordinates) == _TIED):
        raise node.refusal(f"policy '{policy}' is not computed in torch for '{how.coordinates}'")
    axes = node.get_ints("axes")
    if not (scales.known or scales.port is not None or sizes.known or sizes.port is not None):
        raise node.refusal("it has neither sizes nor scales")
    _refuse_uncertain(node, how, scales, sizes)
    if how.coordinates == CROP:
        return lambda x, *behind: _cropped(how, x, axes, scales.among(behind), sizes.among(behind), roi.among(behind))
    if scales.port is None and sizes.port is None and policy == "stretch" and node.shape(0) is not None:
        goal = _goal(node.shape(0) or (), axes, scales.known, sizes.known)
        return _resizer(how, node.shape(0) or (), goal)

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        given = sizes.among(behind)
        if given and policy != "stretch":
            return _keep_aspect(how, x, axes, given, largest=policy == "not_smaller")
        return _resizer(how, x.shape, _goal(x.shape, axes, scales.among(behind), given))(x)

    return run


def upsample(node: NodeReader) -> TorchOp:
    """Upsample, which became Resize: by scales, of an attribute before opset 9."""
    values = node.get_floats("scales")
    return _scaled(node, node.floats(1) if values is None else Numbers(values))


def _scaled(node: NodeReader, scales: Numbers) -> TorchOp:
    mode = node.choice("mode", "nearest", ("nearest", "linear"))
    node.require(scales, "scales")

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        given = scales.among(behind) or ()
        how = Interpolation(mode, "asymmetric", "ceil" if min(given) < 1 else "floor")
        return _resizer(how, x.shape, _goal(x.shape, None, given, None))(x)

    return run


def _refuse_uncertain(node: NodeReader, how: Interpolation, scales: Numbers, sizes: Numbers) -> None:
    """Refuse forms on which runtimes differ."""
    if (how.mode, how.coordinates, how.rounding) == ("nearest", "asymmetric", "round_prefer_ceil"):
        # Ties between two elements fall in ONNX Runtime to a side that follows from no arithmetic of float32.
        raise node.refusal("mode 'nearest' with 'asymmetric' and 'round_prefer_ceil' is not computed in torch")
    by_scales = not sizes.known and sizes.port is None
    is_whole = scales.known is not None and all(float(scale).is_integer() for scale in scales.known)
    if how.coordinates == "align_corners" and by_scales and not is_whole:
        raise node.refusal("runtimes differ on 'align_corners' by a scale that is not whole: export it by its sizes")
    if how.antialias and (how.mode == "nearest" or how.coordinates == CROP):
        raise node.refusal(f"antialias is not computed in torch for mode 'nearest' and '{CROP}'")


def _goal(
    shape: Sequence[int | None],
    axes: Sequence[int] | None,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
) -> _Goal:
    """Return the sizes or the scales by axis.

    The batch keeps its size whatever number was written for it, since another one may run through the network.
    """
    named = [axis % len(shape) for axis in axes or range(len(shape))]
    if not sizes:
        return _Goal({}, {axis: scale for axis, scale in zip(named, scales or (), strict=True) if scale != 1})
    return _Goal({axis: size for axis, size in zip(named, sizes, strict=True) if axis and shape[axis] != size}, {})


def _resizer(how: Interpolation, shape: Sequence[int | None], goal: _Goal) -> Callable[..., Tensor]:
    """Return a function of x and other inputs for a goal that is known."""
    fast = _interpolate(how, shape, goal)
    if fast is not None:
        return fast

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        for axis, size in goal.sizes.items():
            x = how.along(x, axis, size=size, scale=size / x.shape[axis])
        for axis, scale in goal.scales.items():
            size = int(x.shape[axis] * scale)
            if not (how.antialias and size == x.shape[axis]):
                x = how.along(x, axis, size=size, scale=scale)
        return x

    return run


def _keep_aspect(
    how: Interpolation, x: Tensor, axes: Sequence[int] | None, sizes: Sequence[int], *, largest: bool
) -> Tensor:
    """Resize all named axes by one scale: the largest, or the smallest, that the sizes ask for."""
    named = [axis % x.dim() for axis in axes or range(x.dim())]
    scale = (max if largest else min)(size / x.shape[axis] for axis, size in zip(named, sizes, strict=True))
    for axis in named:
        x = how.along(x, axis, size=math.floor(x.shape[axis] * scale + 0.5), scale=scale)
    return x


def _cropped(
    how: Interpolation,
    x: Tensor,
    axes: Sequence[int] | None,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    roi: Sequence[float] | None,
) -> Tensor:
    """Resize the part of x that `roi` names: begins, then ends, of all axes named."""
    named = [axis % x.dim() for axis in axes or range(x.dim())]
    roi = roi or [0.0] * len(named) + [1.0] * len(named)
    outside = torch.zeros([1] * x.dim(), dtype=torch.bool, device=x.device)
    for i, axis in enumerate(named):
        old, part = x.shape[axis], (roi[i], roi[i + len(named)])
        scale = sizes[i] / old if sizes else (scales or ())[i]
        new = sizes[i] if sizes else int(old * scale)
        if scale == 1:  # an axis that keeps its size is not cropped either
            continue
        x = how.along(x, axis, size=new, scale=scale, part=part)
        beyond = torch.from_numpy(np.asarray(how.is_outside(old, new, scale, part))).to(x.device)
        outside = outside | beyond.reshape([-1 if other == axis else 1 for other in range(x.dim())])
    return x.masked_fill(outside, how.extrapolation)


def _interpolate(how: Interpolation, shape: Sequence[int | None], goal: _Goal) -> Callable[..., Tensor] | None:
    """Return torch's interpolate with its arguments; None where it does not compute the same."""
    rank = len(shape)
    if rank not in _LINEAR or not (goal.sizes or goal.scales).keys() <= set(range(2, rank)):
        return None
    wanted = [goal.sizes.get(axis, size) for axis, size in enumerate(shape[2:], start=2)]
    known = [size for size in wanted if size is not None]
    if how.antialias or (goal.sizes and len(known) < len(wanted)):
        return None
    factors = None if goal.sizes else [goal.scales.get(axis, 1.0) for axis in range(2, rank)]
    if factors is not None and any(map(_may_keep, shape[2:], factors)):
        return None  # torch takes an axis that keeps its size as it is, whatever the scale
    mode = _torch_mode(how, shape, known if goal.sizes else None, factors)
    if mode is None:
        return None
    align_corners = how.coordinates == "align_corners" if mode in _LINEAR.values() else None
    return lambda x, *_: F.interpolate(x, known if goal.sizes else None, factors, mode, align_corners)


def _may_keep(size: int | None, scale: float) -> bool:
    """Return whether an axis of several elements may have as many behind a scale that is not 1."""
    return 1 < scale < 1.5 if size is None else scale > 1 and int(size * scale) == size > 1


def _torch_mode(
    how: Interpolation, shape: Sequence[int | None], sizes: list[int] | None, scales: list[float] | None
) -> str | None:
    """Return the equivalent mode of torch's interpolate; None if it has none.

    `nearest` takes floor(i / scale), `nearest-exact` floor((i + 0.5) / scale), the linear modes half pixels or aligned
    corners.
    """
    coordinates, rounding = how.coordinates, how.rounding
    whole = _scales_are_whole(shape, sizes, scales)
    if coordinates == "pytorch_half_pixel" and min(sizes or [2]) > 1 and min(scales or [1]) >= 1:
        coordinates = "half_pixel"  # they differ where a single element is left
    if how.mode == "linear" and (coordinates == "half_pixel" or (coordinates == "align_corners" and (sizes or whole))):
        return _LINEAR[len(shape)]
    if how.mode == "nearest" and (coordinates, rounding) == ("asymmetric", "floor"):
        return "nearest"
    if how.mode == "nearest" and (coordinates, rounding) == ("half_pixel", "round_prefer_ceil"):
        return "nearest-exact"
    if how.mode == "nearest" and (coordinates, rounding) == ("half_pixel", "round_prefer_floor") and whole:
        return "nearest-exact"  # no position lies halfway, so the tie's direction does not matter
    return None


def _scales_are_whole(shape: Sequence[int | None], sizes: list[int] | None, scales: list[float] | None) -> bool:
    if scales is not None:
        return all(float(scale).is_integer() for scale in scales)
    old = shape[2:]
    return sizes is not None and all(size is not None and new % size == 0 for new, size in zip(sizes, old, strict=True))
