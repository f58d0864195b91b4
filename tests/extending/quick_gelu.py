"""An operator of another package: x * sigmoid(alpha * x), ONNX Runtime's QuickGelu. All that dipo has to know of it."""

from __future__ import annotations

import torch

from dipo.graph.operators import Channels, Kind, MomentRule, Operator, Sign
from dipo.graph.ops.reader import NodeReader, TorchOp


def quick_gelu(node: NodeReader) -> TorchOp:
    alpha = node.get_float("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)


QUICK_GELU = Operator(
    name="QuickGelu",
    domain="com.microsoft",
    kind=Kind.ACTIVATION,
    torch=quick_gelu,
    sign=Sign.KEPT,
    homogeneous=False,
    keeps_shifts=False,
    channels=Channels.KEPT,
    moments=MomentRule.CURVE,
    full_integer=True,
)
