"""Sliding windows, as convolutions and poolings share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader


@dataclass(frozen=True)
class Window:
    """A window over the n spatial dimensions of an input [N, C, D1 .. Dn]; every tuple has n entries."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...] | None
    """Pads before the first element; None if `auto_pad` is SAME and they depend on the input's size."""
    ends: tuple[int, ...] | None
    """Pads after the last element; None likewise."""
    same_upper: bool
    """Whether the extra element of an odd SAME pad goes after (SAME_UPPER) or before (SAME_LOWER)."""
    ceil_mode: bool = False

    @staticmethod
    def read(node: NodeReader, kernel: Sequence[int], *, ceil_mode: bool = False) -> Window:
        """Read strides, dilations, pads and auto_pad.

        Raises:
            UserError: The attributes contradict each other.
        """
        n = len(kernel)
        strides = node.get_ints("strides") or (1,) * n
        dilations = node.get_ints("dilations") or (1,) * n
        pads = node.get_ints("pads") or (0,) * (2 * n)
        auto_pad = node.choice("auto_pad", "NOTSET", ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
        if len(strides) != n or len(dilations) != n or len(pads) != 2 * n:
            raise node.refusal(f"strides, dilations or pads do not fit a kernel of {n} dimensions")
        if auto_pad.startswith("SAME") and set(dilations) != {1}:
            raise node.refusal(f"runtimes disagree on auto_pad {auto_pad} with dilations: export explicit pads")
        window = Window(tuple(kernel), strides, dilations, None, None, auto_pad == "SAME_UPPER", ceil_mode)
        if auto_pad == "NOTSET":
            return replace(window, begins=pads[:n], ends=pads[n:])
        if auto_pad == "VALID":
            return replace(window, begins=(0,) * n, ends=(0,) * n)
        if set(strides) == {1}:  # a SAME pad is then the window's extent less one, whatever the input's size
            begins, ends = window.pads_for(window.extents)
            return replace(window, begins=begins, ends=ends)
        return window

    @property
    def extents(self) -> tuple[int, ...]:
        """Length of a window from its first to its last element, with the gaps of dilation."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def symmetric(self) -> tuple[int, ...] | None:
        """Pads in the form that torch kernels take, equal on both sides; None if they differ."""
        if self.begins is None or self.begins != self.ends or min(self.begins) < 0:
            return None
        return self.begins

    def pads_for(self, sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the pads before and after an input of these spatial sizes."""
        if self.begins is not None and self.ends is not None:
            return self.begins, self.ends
        totals = [
            max((-(-size // stride) - 1) * stride + extent - size, 0)
            for size, stride, extent in zip(sizes, self.strides, self.extents, strict=True)
        ]
        small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        return (small, large) if self.same_upper else (large, small)

    def exact_pads_for(self, sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return `pads_for` with ends such that whole windows tile the padded input: ceil_mode adds, floor cuts.

        A window that would start in the pads after the input does not exist.
        """
        begins, ends = self.pads_for(sizes)
        exact = []
        for size, begin, end, stride, extent in zip(sizes, begins, ends, self.strides, self.extents, strict=True):
            room = size + begin + end - extent
            steps = -(-room // stride) if self.ceil_mode else room // stride
            if self.ceil_mode and steps * stride >= size + begin:
                steps -= 1
            exact.append(steps * stride + extent - size - begin)
        return begins, tuple(exact)

    def padder(self) -> Callable[[Tensor], Tensor]:
        """Return a function that pads [N, C, ...] with zeros for this window."""
        if self.begins is not None and self.ends is not None:
            fixed = torch_pads(self.begins, self.ends)
            return lambda x: F.pad(x, fixed)
        return lambda x: F.pad(x, torch_pads(*self.pads_for(x.shape[2:])))


def torch_pads(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return pads as `torch.nn.functional.pad` orders them: last dimension first, leading zeros left out."""
    pairs = list(zip(begins, ends, strict=True))
    while pairs and pairs[0] == (0, 0):
        pairs.pop(0)
    return [pad for pair in reversed(pairs) for pad in pair]


def by_rank(node: NodeReader, functions: Sequence[Callable[..., Tensor]], num_dims: int) -> Callable[..., Tensor]:
    """Return the torch function for this number of spatial dimensions.

    Raises:
        UserError: torch has no such function.
    """
    if not 1 <= num_dims <= len(functions):
        raise node.refusal(f"{num_dims} spatial dimensions: torch computes 1 to {len(functions)}")
    return functions[num_dims - 1]


def lowest(dtype: torch.dtype) -> float:
    """Return the lowest value of a dtype, which never wins a maximum."""
    if dtype == torch.bool:
        return False
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def highest(dtype: torch.dtype) -> float:
    """Return the highest value of a dtype, which never wins a minimum."""
    if dtype == torch.bool:
        return True
    return float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max
