"""Attention as one op: PyTorch's exporter writes it from operator set 23 on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.dtypes import torch_dtype


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    num_outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """`softmax(cap(q k^T * scale) + bias) v` for each head; a query that may look at no key gives zeros.

    Args:
        q, k, v: `[batch, heads, sequence, size]`, or `[batch, sequence, heads * size]` with the numbers of heads; each
            head of k and v serves as many heads of q as there are more of those.
        attn_mask: bool (where to look) or float (added), broadcast to `[batch, heads, queries, keys]`; missing keys at
            its end are not looked at.
        past_key, past_value: `[batch, heads, earlier, size]`, put before k and v.
        nonpad_kv_seqlen: `[batch]`, number of keys that are no padding.
        is_causal: query `i` looks at keys up to `i + offset`, the offset being the number of earlier keys.
        q_num_heads, kv_num_heads: heads of inputs of three dimensions.
        scale: `1 / sqrt(size)` if None.
        softcap: `cap(x) = softcap * tanh(x / softcap)`; none if 0.
        softmax_precision: ONNX number of the dtype of the softmax.
        qk_matmul_output_mode: the fourth output: 0 products, 1 capped, 2 with bias, 3 after the softmax.
        left_window_size, right_window_size: how many keys before and after its own place a query looks at; -1 for all.
        num_outputs: result, keys, values, products; so many of them.

    Raises:
        InputError: three dimensions without numbers of heads.
    """
    flat = q.ndim == 3
    if flat:
        if q_num_heads is None or kv_num_heads is None:
            raise InputError("Attention", "has 3 dimensions and no numbers of heads", "q_num_heads and kv_num_heads")
        heads = (q_num_heads, kv_num_heads, kv_num_heads)
        q, k, v = (x.unflatten(2, (n, -1)).transpose(1, 2) for x, n in zip((q, k, v), heads, strict=True))
    earlier = 0 if past_key is None else past_key.shape[2]
    k = k if past_key is None else torch.cat([past_key, k], 2)
    v = v if past_value is None else torch.cat([past_value, v], 2)
    present = (k, v)
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    # The square root on both sides, rounded to their dtype: products of float16 would overflow before a scale.
    root = torch.tensor(math.sqrt(1 / math.sqrt(q.shape[3]) if scale is None else scale)).to(q)
    products = (q * root) @ (k * root).transpose(2, 3)
    capped = softcap * torch.tanh(products / softcap) if softcap > 0 else products
    offset = nonpad_kv_seqlen if nonpad_kv_seqlen is None else nonpad_kv_seqlen.reshape(-1, 1, 1, 1) - q.shape[2]
    place = torch.arange(q.shape[2], device=q.device)[:, None] + (earlier if offset is None else offset)
    allowed = _allowed(place, k.shape[2], bool(is_causal), left_window_size, right_window_size)
    if nonpad_kv_seqlen is not None:
        allowed = allowed & (torch.arange(k.shape[2], device=q.device) < nonpad_kv_seqlen.reshape(-1, 1, 1, 1))
    biased = capped.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        missing = k.shape[2] - attn_mask.shape[-1]
        dark = 0.0 if attn_mask.dtype == torch.bool else -math.inf
        mask = torch.nn.functional.pad(attn_mask, (0, missing), value=dark) if missing else attn_mask
        biased = biased.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else biased + mask
    dtype = biased.dtype if softmax_precision is None else torch_dtype(softmax_precision, "Attention", "precision")
    peak = biased.amax(-1, keepdim=True)
    blind = peak.isneginf()
    exponentials = torch.exp(biased.to(dtype) - peak.masked_fill(blind, 0.0).to(dtype))
    weights = (exponentials / exponentials.sum(-1, keepdim=True).masked_fill(blind, 1.0)).to(q.dtype)
    result = weights @ v
    result = result.transpose(1, 2).flatten(2) if flat else result
    looked_at = (products, capped, biased, weights)[qk_matmul_output_mode]
    return (result, *present, looked_at)[:num_outputs] if num_outputs > 1 else result


def _allowed(place: Tensor, keys: int, causal: bool, left: int, right: int) -> Tensor:
    """Which keys a query at `place` may look at, `[..., queries, keys]`."""
    ahead = torch.arange(keys, device=place.device) - place
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if causal:
        allowed = allowed & (ahead <= 0)
    if left >= 0:
        allowed = allowed & (-ahead <= left)
    if right >= 0:
        allowed = allowed & (ahead <= right)
    return allowed
