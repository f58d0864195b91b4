"""Attention in ONNX's forms, and what models put in front of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp

_WITH_SCORES = 3
"""Number of outputs in front of the scores."""
_BIASED = 2
"""The `qk_matmul_output_mode` of scores with the mask."""


@dataclass(frozen=True)
class _Window:
    """The keys that a query may see, by their distance from it."""

    is_causal: bool
    left: int
    right: int

    def bias(self, q: Tensor, k: Tensor, offset: Tensor | int) -> Tensor | None:
        """Return 0 where a query sees a key and -inf elsewhere, [batch or 1, 1, queries, keys]; None if it sees all.

        Args:
            q: Queries, [batch, heads, queries, size].
            k: Keys, [batch, heads, keys, size].
            offset: Number of keys in front of the first query; of each sample, [batch], or of all.
        """
        if not self.is_causal and max(self.left, self.right) < 0:
            return None
        places = torch.arange(q.shape[2], device=q.device)[:, None] - torch.arange(k.shape[2], device=q.device)
        ahead = places + (offset if isinstance(offset, int) else offset.reshape(-1, 1, 1, 1))
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if self.is_causal:
            seen = seen & (ahead >= 0)
        if self.left >= 0:
            seen = seen & (ahead <= self.left)
        if self.right >= 0:
            seen = seen & (-ahead <= self.right)
        return _bias_of(seen, q)


def attention(node: NodeReader) -> TorchOp:
    """Attention: softmax(q k' * scale + mask) v over heads, with caches, windows, groups of heads and a soft cap."""
    window = _Window(
        bool(node.get_int("is_causal", 0)), node.get_int("left_window_size", -1), node.get_int("right_window_size", -1)
    )
    heads = node.get_int("q_num_heads", 0), node.get_int("kv_num_heads", 0)
    given_scale, softcap = node.get_float("scale", 0.0), node.get_float("softcap", 0.0)
    mode, num_outputs = node.get_int("qk_matmul_output_mode", 0), node.num_outputs
    if node.get_int("softmax_precision", 1) != 1:
        raise node.refusal("only a softmax in float32 is computed in torch")
    if num_outputs > _WITH_SCORES and mode == _BIASED and (window.is_causal or node.dtype(3) == ir.DataType.BOOL):
        raise node.refusal("runtimes differ on the scores of keys that a query does not see")
    _refuse_half(node)

    def run(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
        past_v: Tensor | None = None, num_valid: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        is_flat = q.dim() == 3  # [batch, positions, heads * size]
        if is_flat:
            q, k, v = (_of_heads(x, num) for x, num in ((q, heads[0]), (k, heads[1]), (v, heads[1])))
        k = k if past_k is None else torch.cat([past_k, k], 2)
        v = v if past_v is None else torch.cat([past_v, v], 2)
        past = 0 if past_k is None else past_k.shape[2]
        offset = past if num_valid is None or past_k is not None else num_valid.reshape(-1) - q.shape[2]
        present = k, v
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scale = math.sqrt(given_scale or 1 / math.sqrt(q.shape[-1]))  # half of it for each, as ONNX has it
        product = (q * scale) @ (k * scale).transpose(-1, -2)
        scores = softcap * torch.tanh(product / softcap) if softcap else product
        bias = _sum([_mask_bias(mask, q, k), window.bias(q, k, offset), _padding_bias(num_valid, q, k)])
        share = _softmax(scores, bias)
        shown = (product, scores, scores if bias is None else scores + bias, share)[mode]
        y = share @ v
        y = y.transpose(1, 2).flatten(2) if is_flat else y
        return y if num_outputs == 1 else (y, *present, shown)[:num_outputs]

    return run


def rotary_embedding(node: NodeReader) -> TorchOp:
    """RotaryEmbedding: pairs of numbers of a head turned by the angles of their position."""
    interleaved, heads = bool(node.get_int("interleaved", 0)), node.get_int("num_heads", 0)
    turned = node.get_int("rotary_embedding_dim", 0)

    def run(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
        is_flat = x.dim() == 3
        given = _of_heads(x, heads) if is_flat else x  # [batch, heads, positions, size]
        size = turned or given.shape[-1]
        pairs, rest = given[..., :size], given[..., size:]
        if places is not None:
            cos, sin = cos[places], sin[places]
        cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)  # one for all heads
        a, b = (pairs[..., 0::2], pairs[..., 1::2]) if interleaved else pairs.chunk(2, -1)
        parts = cos * a - sin * b, sin * a + cos * b
        made = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
        y = torch.cat([made, rest], -1)
        return y.transpose(1, 2).flatten(2) if is_flat else y

    return run


def linear_attention(node: NodeReader) -> TorchOp:
    """LinearAttention: a state of keys times values, read by each query, with decay and correction by its rule."""
    rule = node.choice("update_rule", "gated_delta", ("linear", "gated", "delta", "gated_delta"))
    heads = node.get_int("q_num_heads", 0), node.get_int("kv_num_heads", 0)
    given_scale = node.get_float("scale", 0.0)
    node.ignore("chunk_size")  # how, not what
    num_outputs = node.num_outputs
    _refuse_half(node)

    def run(
        q: Tensor, k: Tensor, v: Tensor, past: Tensor | None = None, decay: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        q, k, v = (_of_heads(x, num) for x, num in ((q, heads[0]), (k, heads[1]), (v, heads[1])))
        state = q.new_zeros((*k.shape[:2], k.shape[-1], v.shape[-1])) if past is None else past
        kept = None if decay is None else _of_heads(decay, heads[1]).exp()
        gain = None if beta is None else beta.transpose(1, 2).unsqueeze(-1)
        made = []
        for i in range(q.shape[2]):
            key, value = k[:, :, i, :, None], v[:, :, i, None, :]
            state = state if kept is None else state * kept[:, :, i, :, None]
            if "delta" in rule and gain is not None:
                value = gain[:, :, i, None] * (value - (state * key).sum(-2, keepdim=True))
            state = state + key * value
            seen = state.repeat_interleave(heads[0] // heads[1], 1)
            made.append((q[:, :, i, :, None] * seen).sum(-2))
        y = (given_scale or 1 / math.sqrt(q.shape[-1])) * torch.stack(made, 1).flatten(2)
        return y if num_outputs == 1 else (y, state)

    return run


def causal_conv_with_state(node: NodeReader) -> TorchOp:
    """CausalConvWithState: a depthwise convolution over [N, C, L] and the positions before; and the last of those."""
    activation = node.choice("activation", "none", ("none", "silu", "swish"))
    num_outputs = node.num_outputs

    def run(
        x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        before = w.shape[-1] - 1
        past = x.new_zeros((*x.shape[:2], before)) if past is None else past
        joined = torch.cat([past, x], 2)
        y = torch.nn.functional.conv1d(joined, w, b, groups=x.shape[1])
        y = y if activation == "none" else torch.nn.functional.silu(y)
        return y if num_outputs == 1 else (y, joined[:, :, joined.shape[2] - before :])

    return run


def _refuse_half(node: NodeReader) -> None:
    """Refuse numbers whose results depend on where a runtime rounds."""
    if node.dtype(0) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        raise node.refusal("it is computed in torch in float32 only")


def _of_heads(x: Tensor, num: int) -> Tensor:
    """Return [batch, positions, heads * size] as [batch, heads, positions, size]."""
    return x.reshape(*x.shape[:2], num, x.shape[2] // num).transpose(1, 2)


def _bias_of(seen: Tensor, q: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, float("-inf"))


def _mask_bias(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Return the mask as numbers to add, for all keys; those behind a shorter mask are not seen."""
    if mask is None:
        return None
    bias = _bias_of(mask, q) if mask.dtype == torch.bool else mask
    missing = k.shape[2] - bias.shape[-1]
    return torch.nn.functional.pad(bias, (0, missing), value=float("-inf")) if missing > 0 else bias


def _padding_bias(num_valid: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    if num_valid is None:
        return None
    return _bias_of(torch.arange(k.shape[2], device=q.device) < num_valid.reshape(-1, 1, 1, 1), q)


def _sum(parts: list[Tensor | None]) -> Tensor | None:
    total = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total


def _softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Return the shares of the keys; none where a query sees no key."""
    if bias is None:
        return torch.softmax(scores, -1)
    blind = torch.isneginf(bias).all(-1, keepdim=True)
    shares = torch.softmax(scores + bias.masked_fill(blind, 0.0), -1)
    return shares.masked_fill(blind, 0.0)
