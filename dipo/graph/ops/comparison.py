"""Comparisons, logic and arithmetic of integers."""

from __future__ import annotations

import torch

from dipo.graph.ops.reader import NodeReader, TorchOp


def is_inf(node: NodeReader) -> TorchOp:
    """IsInf: whether a number is infinite, on either side or one alone."""
    negative, positive = bool(node.get_int("detect_negative", 1)), bool(node.get_int("detect_positive", 1))
    if negative and positive:
        return torch.isinf
    if positive:
        return torch.isposinf
    return torch.isneginf if negative else lambda x: torch.zeros_like(x, dtype=torch.bool)


def mod(node: NodeReader) -> TorchOp:
    """Mod: the remainder of a division, with the divisor's sign, or with the dividend's if `fmod`."""
    return torch.fmod if node.get_int("fmod", 0) else torch.remainder


def bit_shift(node: NodeReader) -> TorchOp:
    """BitShift to the left or right."""
    direction = node.choice("direction", "", ("LEFT", "RIGHT"))
    return torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
