"""Multi-head attention with the documents' call: `attn(query, key, value, ...)`."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn

from . import checks
from .attention import attention, attention_steps
from .fused import seen_finite
from .masks import Mask, hide, padding
from .tiles import Cells, Tiles


class MultiHeadAttention(nn.Module):
    """Project to heads, attend in each, join the heads by a last linear map W^o.

    The number of parameters does not depend on `num_heads`: 4 (E^2 + E) with the defaults.
    Weights start Xavier-uniform, every bias at zero. `num_kv_heads` below `num_heads` shares each
    key/value head between neighbouring query heads. Raises ValueError where sizes do not divide.

    Source: "Attention Is All You Need", section 3.2.2.

    >>> attn = MultiHeadAttention(512, 8)
    >>> output, weights = attn(torch.ones(2, 7, 512))
    >>> output.shape, weights.shape
    (torch.Size([2, 7, 512]), torch.Size([2, 7, 7]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = True,
        empty_rows: str = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        checks.check_multihead(embed_dim, num_heads, num_kv_heads, kdim, vdim, dropout, empty_rows)
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.kdim, self.vdim, self.head_dim = kdim, vdim, embed_dim // num_heads
        self.dropout, self.batch_first, self.empty_rows = dropout, batch_first, empty_rows
        kv_dim = num_kv_heads * self.head_dim
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, embed_dim, **options)
        self.k_proj = nn.Linear(kdim, kv_dim, **options)
        self.v_proj = nn.Linear(vdim, kv_dim, **options)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **options)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Float[Tensor, "_ _ E"],
        key: Float[Tensor, "_ _ kdim"] | None = None,
        value: Float[Tensor, "_ _ vdim"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
        attn_mask: Mask | Shaped[Tensor, "..."] | None = None,
        need_weights: bool = True,
        average_weights: bool = True,
        query_offset: int | Integer[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "_ _ E"], Float[Tensor, "..."] | None]:
        """Attend from query to key and value; `key=None` is self-attention, `value=None` is key.

        Inputs are (B, T, E), or (T, B, E) with `batch_first=False`. In `key_padding_mask` (B, S)
        and a bool `attn_mask` True hides; a float `attn_mask` is added to the scores; it has rank
        2 (T, S), 3 (B*H, T, S) or 4 (B, H, T, S), or is a `Mask`. Returns the output, shaped like
        the query, and the weights: (B, T, S) as the mean over heads, (B, H, T, S) with
        `average_weights=False`, None with `need_weights=False`. Raises as `attention` does.
        """
        key = query if key is None else key
        value = key if value is None else value
        dims = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        dtype = checks.dtype_name(getattr(self.q_proj, "weight", query))
        checks.check_inputs(query, key, value, dims, dtype, self.batch_first)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        sizes = (query.shape[0], self.num_heads, query.shape[1], key.shape[1])
        mask, bias = _read_masks(key_padding_mask, attn_mask, query, sizes)
        checks.check_mask(mask, sizes)
        query_offset = checks.check_query_offset(query_offset, mask, sizes)
        if mask is not None and sizes[2] and self.empty_rows != "uniform":
            key, value = _without_unseen(key, value, mask, sizes, query_offset)
        heads = (
            _split_heads(self.q_proj(query), self.num_heads),
            _split_heads(self.k_proj(key), self.num_kv_heads),
            _split_heads(self.v_proj(value), self.num_kv_heads),
        )
        options = {
            "mask": mask,
            "bias": bias,
            "empty_rows": self.empty_rows,
            "query_offset": query_offset,
            "dropout": self.dropout if self.training else 0.0,
        }
        weights = None
        if need_weights:
            _, _, weights, output = attention_steps(*heads, **options)
            weights = weights.mean(1) if average_weights else weights
        else:
            output = attention(*heads, **options)
        output = self.out_proj(_merge_heads(output))
        return output if self.batch_first else output.transpose(0, 1), weights


def _without_unseen(key, value, mask, sizes, query_offset):
    """Put 0 where no query looks: in a parameter's gradient NaN would not be hidden."""
    if seen_finite(key, value):
        return key, value
    at = Tiles(Cells(sizes, query_offset, device=key.device), sizes[2], 1)
    some = mask.ask(at).some.broadcast_to((*sizes[:2], 1, sizes[3]))
    seen = some.any((1, 2))[..., None]  # (B, S, 1)
    return torch.where(seen, key, 0), torch.where(seen, value, 0)


def _split_heads(x, num_heads: int):
    """(B, T, H * D) -> (B, H, T, D); neighbours stay neighbours inside a head."""
    batch, length, features = x.shape
    return x.reshape(batch, length, num_heads, features // num_heads).transpose(1, 2)


def _merge_heads(x):
    """(B, H, T, D) -> (B, T, H * D)."""
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * head_dim)


def _read_masks(key_padding_mask, attn_mask, query, sizes):
    """Turn the documents' two arguments, in which True hides, into a Mask and a bias."""
    mask, bias = None, None
    if isinstance(attn_mask, Mask):
        mask = attn_mask
    elif attn_mask is not None:
        checks.check_attn_mask(attn_mask, query, sizes)
        if attn_mask.ndim == 3:  # (B*H, T, S), sample-major
            attn_mask = attn_mask.reshape(sizes)
        if checks.dtype_name(attn_mask) != "bool":
            bias = attn_mask
        elif attn_mask.ndim == 2:
            mask = hide(attn_mask[None, None])
        else:
            mask = hide(attn_mask)
    if key_padding_mask is not None:
        checks.check_key_padding_mask(key_padding_mask, sizes)
        hidden = padding(hidden=key_padding_mask)
        mask = hidden if mask is None else mask & hidden
    return mask, bias
