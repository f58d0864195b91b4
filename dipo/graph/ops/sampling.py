"""Operators that read or write images at places of their own: grids, regions, blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp

_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


def grid_sample(node: NodeReader) -> TorchOp:
    """GridSample: x [N, C, ...] at the places of a grid [N, ..., 2 or 3] in [-1, 1]."""
    mode = _MODES[node.choice("mode", "bilinear", tuple(_MODES))]
    padding = node.choice("padding_mode", "zeros", ("zeros", "border", "reflection"))
    align_corners = bool(node.get_int("align_corners", 0))
    rank = node.rank(0)
    if rank not in (4, 5) or (rank == 5 and mode == "bicubic"):
        raise node.refusal(f"a grid of {rank - 2} spatial axes in mode '{mode}' is not computed in torch")
    return lambda x, grid: F.grid_sample(x, grid, mode, padding, align_corners)


def affine_grid(node: NodeReader) -> TorchOp:
    """AffineGrid: the places of an image of a size [N, C, ...], moved by matrices theta [N, 2 or 3, 3 or 4]."""
    align_corners = bool(node.get_int("align_corners", 0))
    sizes = node.require(node.ints(1), "size")
    return lambda theta, *behind: F.affine_grid(theta, list(sizes.among(behind) or ()), align_corners)


def col_to_im(node: NodeReader) -> TorchOp:
    """Col2Im: sums of the blocks [N, C * block, blocks] that overlap, as an image [N, C, ...]."""
    images, blocks = node.require(node.ints(1), "image_shape"), node.require(node.ints(2), "block_shape")
    dilations, strides, pads = (node.get_ints(name) for name in ("dilations", "strides", "pads"))

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        image, block = images.among(behind) or (), blocks.among(behind) or ()
        rank = len(image)
        steps, gaps, edges = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * (2 * rank)
        padded = [image[i] + edges[i] + edges[rank + i] for i in range(rank)]
        counts = [(padded[i] - (block[i] - 1) * gaps[i] - 1) // steps[i] + 1 for i in range(rank)]
        place = torch.zeros([1] * (2 * rank), dtype=torch.int64, device=x.device)
        for i in range(rank):
            within = torch.arange(block[i], device=x.device).mul(gaps[i])
            begin = torch.arange(counts[i], device=x.device).mul(steps[i])
            along = within.reshape([-1 if j == i else 1 for j in range(2 * rank)])
            place = place * padded[i] + along + begin.reshape([-1 if j == rank + i else 1 for j in range(2 * rank)])
        values = x.reshape(x.shape[0], -1, place.numel())
        made = x.new_zeros((*values.shape[:2], math.prod(padded)))
        made = made.index_add(2, place.reshape(-1), values).reshape(*values.shape[:2], *padded)
        for i in range(rank):
            made = made.narrow(2 + i, edges[i], image[i])
        return made

    return run


def max_unpool(node: NodeReader) -> TorchOp:
    """MaxUnpool: zeros, but for the numbers of x at their indices into the whole output."""
    kernel = node.get_ints("kernel_shape") or ()
    strides = node.get_ints("strides") or (1,) * len(kernel)
    pads = node.get_ints("pads") or (0,) * (2 * len(kernel))
    shapes = node.ints(2)

    def run(x: Tensor, indices: Tensor, *behind: Tensor | None) -> Tensor:
        shape = shapes.among((indices, *behind))
        if shape is None:
            sizes = (
                (x.shape[i + 2] - 1) * strides[i] - pads[i] - pads[len(kernel) + i] + kernel[i]
                for i in range(len(kernel))
            )
            shape = (*x.shape[:2], *sizes)
        y = x.new_zeros(math.prod(shape)).scatter(0, indices.reshape(-1), x.reshape(-1))
        return y.reshape(shape)

    return run


def roi_align(node: NodeReader) -> TorchOp:
    """RoiAlign: the means of samples of regions [R, 4] of images [N, C, H, W], [R, C, height, width]."""
    if node.choice("mode", "avg", ("avg", "max")) == "max":
        raise node.refusal("mode 'max' is not computed in torch")
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    choices = ("half_pixel", "output_half_pixel")
    shift = 0.5 if node.choice("coordinate_transformation_mode", default, choices) == "half_pixel" else 0.0
    height, width = node.get_int("output_height", 1), node.get_int("output_width", 1)
    ratio, scale = node.get_int("sampling_ratio", 0), node.get_float("spatial_scale", 1.0)

    def run(x: Tensor, rois: Tensor, images: Tensor) -> Tensor:
        made = [
            _region(x[image], roi * scale - shift, (height, width), ratio, least=0.0 if shift else 1.0)
            for roi, image in zip(rois, images.tolist(), strict=True)
        ]
        return torch.stack(made) if made else x.new_zeros((0, x.shape[1], height, width))

    return run


def _region(x: Tensor, roi: Tensor, size: tuple[int, int], ratio: int, *, least: float) -> Tensor:
    """Return the bins, [C, height, width], of one region (x, y, x, y) of an image [C, H, W]."""
    rows, columns = (
        _samples(roi[axis], roi[axis + 2], size[1 - axis], ratio, x.shape[2 - axis], least) for axis in (1, 0)
    )
    (row_low, row_high, row_part, row_seen), (low, high, part, seen) = rows, columns
    if not (row_low.numel() and low.numel()):  # an empty region
        return x.new_zeros((len(x), *size))
    above = x[:, row_low] * (1 - row_part)[:, None] + x[:, row_high] * row_part[:, None]
    read = (above[..., low] * (1 - part) + above[..., high] * part) * (row_seen[:, None] & seen)
    bins = read.reshape(len(x), size[0], read.shape[1] // size[0], size[1], read.shape[2] // size[1])
    return bins.mean((2, 4))


def _samples(
    begin: Tensor, end: Tensor, num: int, ratio: int, size: int, least: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the samples along an axis: two neighbours, the share of the second, whether they lie in the image."""
    length = (end - begin).clamp(min=least) if least else end - begin
    count = ratio or max(math.ceil(float(length.detach()) / num), 0)
    place = begin + (torch.arange(num * count, device=begin.device) + 0.5) * (length / num / count)
    seen = (place >= -1) & (place <= size)
    place = place.clamp(0, size - 1)
    low = place.floor().long()
    return low, (low + 1).clamp(max=size - 1), place - low, seen
