"""Losses, as a network that was exported for training has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp


def negative_log_likelihood(node: NodeReader) -> TorchOp:
    """NegativeLogLikelihoodLoss: of log probabilities [N, C, ...] and classes [N, ...]."""
    loss = _loss(node)
    return lambda x, target, weight=None: loss(x, target, weight)


def softmax_cross_entropy(node: NodeReader) -> TorchOp:
    """SoftmaxCrossEntropyLoss: the loss of log_softmax(x), x [N, C, ...]; and that itself, if used."""
    loss, num_outputs = _loss(node), node.num_outputs

    def run(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        log_prob = F.log_softmax(x, 1)
        made = loss(log_prob, target, weight)
        return made if num_outputs == 1 else (made, log_prob)

    return run


def _loss(node: NodeReader) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    reduction = node.choice("reduction", "mean", ("mean", "sum", "none"))
    ignored = node.get_int("ignore_index", 0) if "ignore_index" in node.node.attributes else None

    def run(log_prob: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        target = target.long()
        counts = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
        known = target.masked_fill(~counts, 0)
        share = counts.to(log_prob.dtype) if weight is None else weight[known] * counts
        loss = -log_prob.gather(1, known.unsqueeze(1)).squeeze(1) * share
        if reduction == "mean":
            return loss.sum() / share.sum()
        return loss.sum() if reduction == "sum" else loss

    return run
