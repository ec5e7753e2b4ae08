"""Multi-head attention with torch's call: `attn(query, key, value, ...)`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn

from . import checks, shard_checks
from .arrays import dtype_name, is_autocast, is_concrete, is_distributed
from .attention import attend, attend_steps
from .cache import KVCache, pack, restored_on_error, uniform, unpack
from .call import Call
from .dtensors import (
    check_context_parallel,
    check_gathered,
    count_heads,
    cut_heads,
)
from .fused import fused_step
from .layers import new_linear
from .masks import Mask, allow, causal, hide, padding
from .numerics import (
    cast_like,
    mark_heads,
    mark_nonfinite,
    scale_or_default,
    set_nonfinite_aside,
    surely_finite,
    surely_scored,
)
from .sharded import Shards, attend_sharded, check_no_share, current_shards, note_share
from .tiles import Cells, Tiles
from .window import WindowCache

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class MultiHeadAttention(nn.Module):
    """Project to heads, attend in each, join the heads by a last linear map W^o.

    The number of parameters does not depend on `num_heads`: 4 (E^2 + E) with the defaults.
    Weights start Xavier-uniform, every bias at zero. `num_kv_heads` below `num_heads` shares each
    key/value head between neighbouring query heads. Raises ValueError where sizes do not divide.

    `head_dim` is embed_dim / num_heads where left out, `qkv_bias` is `bias`, and `scale` and
    `softcap` are as in `attention`; `sinks=True` gives it a trained logit a head, 0 at first.
    `process_heads(query, key, positions)` returns the heads that attend, of the same shapes, as
    `rotary` and `QKNorm` do: it is given query (B, H, T, D), key (B, H_kv, T, D) and where each
    token stands, integers (B, T) or (1, T). It runs before keys enter a cache, and only where keys
    are the query's own tokens: in self-attention and `decode`.

    Source: "Attention Is All You Need", section 3.2.2; grouped heads: "GQA", section 2.2.

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
        head_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        qkv_bias: bool | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        process_heads: Callable | None = None,
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
        qkv_bias = bias if qkv_bias is None else qkv_bias
        checks.check_multihead(embed_dim, num_heads, num_kv_heads, head_dim, kdim, vdim)
        checks.check_settings(dropout, empty_rows, scale, softcap)
        checks.check_switches(bias=bias, qkv_bias=qkv_bias, sinks=sinks)
        checks.check_switches(batch_first=batch_first)
        checks.check_process_heads(process_heads)
        head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.kdim, self.vdim, self.head_dim = kdim, vdim, head_dim
        self.scale, self.softcap, self.process_heads = scale, softcap, process_heads
        self.dropout, self.batch_first, self.empty_rows = dropout, batch_first, empty_rows
        self.bias, self.qkv_bias = bias, qkv_bias
        q_dim, kv_dim = num_heads * head_dim, num_kv_heads * head_dim
        self.q_proj = new_linear(embed_dim, q_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.k_proj = new_linear(kdim, kv_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.v_proj = new_linear(vdim, kv_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.out_proj = new_linear(q_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        zeros = torch.zeros(num_heads, device=device, dtype=dtype) if sinks else None
        self.sinks = None if zeros is None else nn.Parameter(zeros)

    def reset_parameters(self) -> None:
        """Set the sinks to 0, of a module built on the meta device; a map sets its own."""
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def forward(
        self,
        query: Float[Tensor, "_ _ E"],
        key: Float[Tensor, "_ _ kdim"] | KVCache | None = None,
        value: Float[Tensor, "_ _ vdim"] | None = None,
        *,
        key_padding_mask: Mask | Bool[Tensor, "B S"] | None = None,
        attn_mask: Mask | Shaped[Tensor, "..."] | None = None,
        need_weights: bool = True,
        average_weights: bool = True,
        query_offset: int | Integer[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "_ _ E"], Float[Tensor, "..."] | None]:
        """Attend from query to key and value; `key=None` is self-attention, `value=None` is key.

        Inputs are (B, T, E), or (T, B, E) with `batch_first=False`; a `KVCache` as `key` is what
        was projected before. In `key_padding_mask` (B, S) and a bool `attn_mask` True hides; a
        float `attn_mask` is added to the scores; it has rank 2 (T, S), 3 (B*H, T, S) or 4 (B, H,
        T, S). Either may be a `Mask` instead. Returns the output, shaped like the query, and the
        weights: (B, T, S) as the mean over heads, (B, H, T, S) with `average_weights=False`, None
        with `need_weights=False`. Raises as `attention` does.
        """
        same = key is None or key is query
        if self.process_heads is not None:
            checks.check_same_tokens(same, query_offset)
        shards = current_shards()
        if shards is not None:
            shard_checks.check_in_shards(
                same and (value is None or value is key), need_weights, query_offset
            )
            return self._attend_to_ranks(query, key_padding_mask, attn_mask, shards), None
        query, keys, values = self._check_inputs(query, key, value)
        check_no_share(self, query)
        call = self._check_masks(query, keys, key_padding_mask, attn_mask, query_offset)
        heads = self._project_query(query)
        if not isinstance(keys, KVCache):
            keys, values, marks = _set_hidden_aside(keys, values, call)
            projected, values = self._project_heads(keys, values)
            heads, projected = self._process(heads, projected)
            keys = self._full_cache(*mark_heads(projected, values, marks))
        output, weights = self._attend(heads, keys, call, need_weights)
        if weights is not None and average_weights:
            shard_checks.check_each_head(weights.shape[1], self.num_heads)
            weights = weights.mean(1)
        return output, weights

    def new_cache(
        self, batch_size: int, capacity: int | None = None, *, window: int | None = None
    ) -> KVCache:
        """Return an empty cache for `decode`, of `capacity` slots a sample, or of a window.

        With `window=before` decoding is `sliding_window(before)`, in memory that does not grow.
        Its dtype is that of the weights, or autocast's where that is on, and float32 where there
        are no float weights: `KVCache.empty` makes others.
        """
        checks.check_one_of("capacity", capacity, "window", window)
        if window is not None:
            checks.check_count("window", window, 0)
        kind = KVCache if window is None else WindowCache
        slots: Any = capacity if window is None else window + 1
        held = (getattr(self.k_proj, "weight", None), *self.parameters(), *self.buffers())
        arrays = [array for array in held if isinstance(array, Tensor)]
        floats = [array for array in arrays if checks.float_name(array)]
        dtype = floats[0].dtype if floats else torch.float32
        device = next((array.device for array in (*floats, *arrays)), torch.get_default_device())
        if is_autocast(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device.type)
        sizes = (batch_size, count_heads(self.k_proj, self.num_kv_heads), slots, self.head_dim)
        return kind.empty(*sizes, dtype=dtype, device=device)

    def project(
        self,
        key: Float[Tensor, "_ _ kdim"],
        value: Float[Tensor, "_ _ vdim"] | None = None,
    ) -> KVCache:
        """Project keys and values once, for many calls: a full cache, to be given as `key`."""
        if self.process_heads is not None:
            checks.check_same_tokens(False, None)
        value = key if value is None else value
        checks.check_memory(key, value, self._dims(), self._dtype(key), self.batch_first)
        tokens = self._batch_first(key), self._batch_first(value)
        key, value, marks = set_nonfinite_aside(*tokens)  # who is hidden, a later call says
        return self._full_cache(*mark_heads(*self._project_heads(key, value), marks))

    @torch.no_grad()
    def decode(
        self,
        x: Float[Tensor, "_ _ E"],
        cache: KVCache,
        *,
        hidden: Bool[Tensor, "B T"] | None = None,
        attn_mask: Mask | None = None,
    ) -> tuple[Float[Tensor, "_ _ E"], KVCache]:
        """Attend from new tokens to themselves and to those before: a prompt, a chunk, a step.

        Their keys and values are written behind the cache's, and the cache is handed on: the one
        given is consumed. `attn_mask` is over T queries and all slots, `causal()` where left out.
        Tokens that `hidden` marks are neither stored nor counted, wherever they stand, and their
        output is 0; positions count what is stored. No gradients. Beyond the capacity it raises
        ValueError; under torch.compile, where lengths are not known, the sample's output is NaN
        from then on.

        >>> attn, x = MultiHeadAttention(8, 2), torch.randn(1, 5, 8)
        >>> prompt, cache = attn.decode(x[:, :4], attn.new_cache(1, 5))
        >>> step, cache = attn.decode(x[:, 4:], cache)
        >>> torch.allclose(step, attn(x, attn_mask=causal())[0][:, 4:], atol=1e-6)
        True
        """
        counts = self._check_decode(x, cache, hidden, attn_mask)
        packed = pack(x, hidden, self.batch_first)
        with restored_on_error(cache):
            output, written = self._decode_packed(packed, cache, counts, attn_mask)
            return unpack(output, hidden, self.batch_first), written

    def _decode_packed(
        self, x: Tensor, cache: KVCache, counts: Tensor | None, mask: Mask | None
    ) -> tuple[Tensor, KVCache]:
        """Decode checked tokens. Hidden ones stand last, and `counts` leaves them out."""
        x, first = self._batch_first(x), cache.lengths
        key, value = self._project_heads(x, x)
        shard_checks.check_local("keys of a cache", is_distributed(key))
        heads = self._process(self._project_query(x), key, first)
        query, key, value = (cast_like(array, cache.key) for array in (*heads, value))
        if isinstance(cache, WindowCache):
            return self._decode_window(query, key, value, cache, counts)
        if mask is not None:
            cache = cache._append(*mark_nonfinite(key, value), counts)
            sizes = (x.shape[0], self.num_heads, x.shape[1], cache.capacity)
            call = self._new_call(sizes, mask, None, first)
            return self._attend(query, cache, call, False)[0], cache
        sure = surely_scored(query, key, value, scale_or_default(self.scale, self.head_dim))
        key, value = (key, value) if sure else mark_nonfinite(key, value)
        cache = cache._append(key, value, counts)
        return self._attend_slots(query, cache, first, sure), cache

    def _decode_window(
        self, query: Tensor, key: Tensor, value: Tensor, cache: WindowCache, counts: Tensor | None
    ) -> tuple[Tensor, KVCache]:
        """Decode into a ring: a step writes and looks at all slots, a chunk looks, then writes."""
        sure = surely_scored(query, key, value, scale_or_default(self.scale, self.head_dim))
        key, value = (key, value) if sure else mark_nonfinite(key, value)
        if query.shape[2] == 1:
            written = cache._append(key, value, counts)
            slots = written.slots()
            return self._attend_slots(query, slots, slots.lengths - 1, sure), written
        keys, values, mask = cache.beside(key, value, counts)
        sizes = (*query.shape[:3], keys.shape[2])
        checks.check_projected(query, keys, values, sizes)
        call = self._on_device(self._new_call(sizes, mask, None, 0), query, keys)
        output = attend(query, keys, values, call)
        output = self._join_heads(_nan_if_overflowed(output, cache.slots()))
        return output, cache._append(key, value, counts)

    def _check_inputs(
        self, query: Tensor, key: Tensor | KVCache | None, value: Tensor | None
    ) -> tuple[Tensor, Any, Any]:
        """Return checked inputs, batch first: three arrays, or an array, a cache and None."""
        self._check_settings()
        dims, dtype = self._dims(), self._dtype(query)
        if isinstance(key, KVCache):
            checks.check_cached(query, key, value, dims, dtype, self.batch_first)
            return self._batch_first(query), key, None
        key = query if key is None else key
        value = key if value is None else value
        checks.check_inputs(query, key, value, dims, dtype, self.batch_first)
        return self._batch_first(query), self._batch_first(key), self._batch_first(value)

    def _check_masks(
        self,
        query: Tensor,
        key: Tensor | KVCache,
        key_padding_mask: Mask | Tensor | None,
        attn_mask: Mask | Tensor | None,
        query_offset: int | Tensor | None,
    ) -> Call:
        """Return the call of an attention from checked inputs, batch first."""
        keys = key.capacity if isinstance(key, KVCache) else key.shape[1]
        sizes = (query.shape[0], self.num_heads, query.shape[1], keys)
        mask, bias = _read_masks(key_padding_mask, attn_mask, query, sizes)
        checks.check_mask(mask, sizes)
        query_offset = checks.check_query_offset(query_offset, mask, sizes)
        return self._new_call(sizes, mask, bias, query_offset)

    def _check_decode(
        self, x: Tensor, cache: KVCache, hidden: Tensor | None, mask: Mask | None
    ) -> Tensor | None:
        """Refuse a wrong call before anything is written; return how many tokens are not hidden."""
        self._check_settings()
        shard_checks.check_no_shards(current_shards() is None)
        checks.check_is_cache(cache, KVCache)
        checks.check_decode(x, cache, hidden, self._dims(), self._dtype(x), self.batch_first)
        batch, steps = x.shape[:2] if self.batch_first else x.shape[1::-1]
        if mask is not None:
            checks.check_no_window(cache, "attn_mask")
            checks.check_is_mask("attn_mask must be a Mask", mask, Mask)
            checks.check_mask(mask, (batch, self.num_heads, steps, cache.capacity))
            if hidden is not None:
                checks.check_movable("attn_mask", mask)
        counts = None if hidden is None else (~hidden).sum(1).to(cache.lengths.device)
        checks.check_room(cache, steps if counts is None else counts)
        return counts

    def _check_settings(self) -> None:
        """Check what may have been set since the module was made."""
        checks.check_settings(self.dropout, self.empty_rows, self.scale, self.softcap)
        checks.check_process_heads(self.process_heads)
        sinks = self.sinks
        if sinks is not None:
            checks.check_sink_of_each(sinks, self.num_heads)
            checks.check_float("sinks", sinks)

    def _dims(self) -> dict[str, int]:
        dims = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        kv_heads = count_heads(self.k_proj, self.num_kv_heads)
        return dims | {"kv_heads": kv_heads, "head_dim": self.head_dim}

    def _dtype(self, x: Tensor) -> str:
        """Return the dtype of the weights, or that of x where no projection has float ones."""
        for name in PROJECTIONS:
            weight = getattr(getattr(self, name), "weight", None)
            dtype = checks.float_name(weight)
            if dtype and not is_distributed(weight):  # FSDP casts what it gathers
                return dtype
        return checks.float_name(x) or "float32"

    def _batch_first(self, x: Tensor) -> Tensor:
        """Put the batch first, or back to where the caller has it."""
        return x if self.batch_first else x.swapaxes(0, 1)

    def _new_call(
        self,
        sizes: tuple[int, int, int, int],
        mask: Mask | None,
        bias: Tensor | None,
        query_offset: int | Tensor,
    ) -> Call:
        dropout = self.dropout if self.training else 0.0
        scale = scale_or_default(self.scale, self.head_dim)
        softcap = None if self.softcap is None else float(self.softcap)
        sinks = self.sinks
        empty_rows = self.empty_rows if sinks is None else "zero"  # what is left goes to the sink
        told = (mask, bias, scale, softcap, sinks, empty_rows)
        return Call(sizes, *told, query_offset, dropout, None)

    def _full_cache(self, key: Tensor, value: Tensor) -> KVCache:
        """Return a full cache of projected heads."""
        place = key.device if key.is_meta else "cpu"
        lengths = torch.full((key.shape[0],), key.shape[2], device=place)
        cache = KVCache(key, value, lengths)
        cache.projected = True
        return cache

    def _project_query(self, x: Tensor) -> Tensor:
        check_gathered(q_proj=self.q_proj)
        return self._split_heads(self.q_proj(x), self.q_proj, self.num_heads)

    def _project_heads(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        check_gathered(k_proj=self.k_proj, v_proj=self.v_proj)
        heads, key, value = self.num_kv_heads, self.k_proj(key), self.v_proj(value)
        key = self._split_heads(key, self.k_proj, heads)
        return key, self._split_heads(value, self.v_proj, heads)

    def _process(
        self, query: Tensor, key: Tensor, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Let `process_heads` change the heads of tokens from position `first` on, or from 0."""
        if self.process_heads is None:
            return query, key
        shards = current_shards()
        if shards is None:
            places = torch.arange(query.shape[2], device=query.device)[None]
        else:
            places = shards.rows[shards.rank].to(query.device)[None]
        positions = places if first is None else first.to(query.device)[:, None] + places
        processed: Any = self.process_heads(query, key, positions)
        checks.check_processed(processed, query, key)
        return processed[0], processed[1]

    def _on_device(self, call: Call, query: Tensor, key: Tensor) -> Call:
        """Return the call of the heads that this device has: all, if no engine shares them out."""
        check_context_parallel()
        heads, kv_heads = query.shape[1], key.shape[1]
        shard_checks.check_shared_alike(heads, kv_heads, self.num_heads, self.num_kv_heads)
        return call if heads == self.num_heads else cut_heads(call, self.q_proj, heads)

    def _attend_to_ranks(
        self, x: Tensor, key_padding_mask: Any, attn_mask: Any, shards: Shards
    ) -> Tensor:
        """Attend from this rank's tokens to those of all ranks; masks are of the whole call."""
        x, _, _ = self._check_inputs(x, None, None)
        note_share(self, x)
        rows = shards.rows[shards.rank]
        shard_checks.check_rank_length("query", x.shape[1], len(rows))
        sizes = (x.shape[0], self.num_heads, shards.length, shards.length)
        mask, bias = _read_masks(key_padding_mask, attn_mask, x, sizes)
        checks.check_mask(mask, sizes)
        call = self._new_call(sizes, mask, bias, 0)
        hiding = call.mask is not None or call.bias is not None
        keys, values, marks = set_nonfinite_aside(x, x) if hiding else (x, x, None)
        key, value = self._project_heads(keys, values)
        query = self._project_query(x)
        query, key = self._process(query, key)
        key, value = mark_heads(key, value, marks)
        call, query = self._on_device(call, query, key), cast_like(query, key)
        checks.check_projected(query, key, value, (*call.sizes[:2], len(rows), len(rows)))
        return self._join_heads(attend_sharded(query, key, value, call, shards))

    def _attend(
        self, query: Tensor, cache: KVCache, call: Call, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to what is written; return the output, and the weights where needed."""
        call = self._on_device(call, query, cache.key)
        query, weights = cast_like(query, cache.key), None
        if not cache.is_full():
            written = padding(cache.lengths)
            mask = written if call.mask is None else call.mask & written
            call = call._replace(mask=mask)
            if call.empty_rows == "uniform":
                query, call = _uniform(query, mask, written, call)
        checks.check_projected(query, cache.key, cache.value, call.sizes)
        if need_weights:
            _, _, weights, output = attend_steps(query, cache.key, cache.value, call)
            weights = _nan_if_overflowed(weights, cache)
        else:
            output = attend(query, cache.key, cache.value, call)
        return self._join_heads(_nan_if_overflowed(output, cache)), weights

    def _attend_cached(self, x: Tensor, cache: KVCache, call: Call) -> Tensor:
        """Attend from checked x to a cache; x and the output are laid out as the caller's."""
        checks.check_live(cache)  # it may be the one that was just written to
        query = self._project_query(self._batch_first(x))
        return self._attend(query, cache, call, False)[0]

    def _attend_slots(self, query: Tensor, cache: KVCache, first: Tensor, sure: bool) -> Tensor:
        """Attend causally from tokens from position `first` on, one for each sample."""
        known = is_concrete(cache.lengths)
        lengths = cache.lengths.tolist() if known else []
        last = max(lengths, default=0) if known else cache.capacity
        sizes = (*query.shape[:3], last)
        key, value = cache.key[:, :, :last], cache.value[:, :, :last]
        checks.check_projected(query, key, value, sizes)
        check_context_parallel()
        alone = lengths and sizes[2] == 1 and self.softcap is None and self.sinks is None
        if alone and (sure or not key.is_cpu) and not (self.training and self.dropout):
            # The newest token is allowed every key.
            return self._join_heads(fused_step(query, cache.key, cache.value, lengths, self.scale))
        same = uniform(first) if known else None
        call = self._new_call(sizes, causal(), None, first if same is None else same)
        call = self._on_device(call, query, key)
        return self._join_heads(_nan_if_overflowed(attend(query, key, value, call), cache))

    def _split_heads(self, x: Tensor, linear: nn.Module, num_heads: int) -> Tensor:
        """(B, T, H * D) -> (B, H, T, D); neighbours stay neighbours inside a head."""
        if x.shape[2] != num_heads * self.head_dim:
            num_heads = count_heads(linear, num_heads)
        checks.check_heads(x.shape[2], num_heads, self.head_dim)
        return x.reshape(*x.shape[:2], num_heads, self.head_dim).swapaxes(1, 2)

    def _join_heads(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, T, E), laid out as the caller has it."""
        x = x.swapaxes(1, 2)
        output = self.out_proj(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]))
        checks.check_given("out_proj", output, (*x.shape[:2], self.embed_dim))
        return self._batch_first(output)


def _set_hidden_aside(key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor, Any]:
    """Put 0 for tokens that may be hidden: in a parameter's gradient NaN would not be.

    Beside them stand marks for `mark_heads`, where only the attention will tell who is hidden.
    """
    if (call.mask is None and call.bias is None) or surely_finite(key, value):
        return key, value, None
    mask = _exact_mask(call)
    if mask is None:
        return set_nonfinite_aside(key, value)
    return *_zero_hidden_keys(key, value, mask, call.sizes, call.query_offset), None


def _exact_mask(call: Call) -> Mask | None:
    """Return the mask if its tiles tell exactly which keys are hidden from every query.

    Two rules may hide a key together, a tile of ids tells their range only, and a bias may hide.
    """
    if call.mask is None or call.bias is not None or call.empty_rows == "uniform":
        return None
    names = [leaf.name for leaf in call.mask.leaves() if leaf.name != "padding"]
    loose = len(names) > 1 or not {"predicate", "segments", "part"}.isdisjoint(names)
    return None if loose or not call.sizes[2] else call.mask


def _zero_hidden_keys(
    key: Tensor,
    value: Tensor,
    mask: Mask,
    sizes: tuple[int, int, int, int],
    query_offset: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Put 0 where no query is allowed: what stands there changes no bit of an answer."""
    at = Tiles(Cells(sizes, query_offset, device=key.device), sizes[2], 1)
    some = torch.broadcast_to(mask.evaluate(at).any, (*sizes[:2], 1, sizes[3]))
    allowed = torch.any(some, (1, 2))[..., None]  # (B, S, 1)
    return torch.where(allowed, key, 0), torch.where(allowed, value, 0)


def _uniform(query: Tensor, mask: Mask, written: Mask, call: Call) -> tuple[Tensor, Call]:
    """Allow fully masked rows every written slot alike: their query and bias are 0."""
    cells = Cells(call.sizes, call.query_offset, device=query.device)
    allowed = torch.broadcast_to(mask.evaluate(cells), call.sizes)
    bias = call.bias
    if bias is not None:
        allowed = allowed & (bias.to(query.device) != -torch.inf)
    empty = ~allowed.any(-1, keepdim=True)
    bias = None if bias is None else torch.where(empty, 0, bias.to(query.device))
    mask = allow(torch.where(empty, written.evaluate(cells), allowed))
    call = call._replace(mask=mask, bias=bias, empty_rows="nan")  # where nothing is written
    return torch.where(empty, 0, query), call


def _nan_if_overflowed(array: Tensor, cache: KVCache) -> Tensor:
    """Put NaN into samples whose lengths are beyond their slots, where none could be refused."""
    if cache.projected or is_concrete(cache.lengths):
        return array
    wrong = (cache.lengths < 0) | (cache.lengths > cache.capacity)
    return array.masked_fill(wrong.to(array.device)[:, None, None, None], torch.nan)


def _read_masks(
    key_padding_mask: Mask | Tensor | None,
    attn_mask: Mask | Tensor | None,
    query: Tensor,
    sizes: tuple[int, int, int, int],
) -> tuple[Mask | None, Tensor | None]:
    """Turn torch's two arguments, in which True hides, into a Mask and a bias."""
    mask, bias = None, None
    if isinstance(attn_mask, Mask):
        mask = attn_mask
    elif attn_mask is not None:
        checks.check_attn_mask(attn_mask, query, sizes)
        if attn_mask.ndim == 2:
            attn_mask = attn_mask[None, None]
        elif attn_mask.ndim == 3:  # (B*H, T, S), sample-major
            attn_mask = attn_mask.reshape(sizes)
        if dtype_name(attn_mask) == "bool":
            mask = hide(attn_mask)
        else:
            bias = attn_mask
    if isinstance(key_padding_mask, Mask):
        mask = key_padding_mask if mask is None else mask & key_padding_mask
    elif key_padding_mask is not None:
        checks.check_key_padding_mask(key_padding_mask, sizes)
        hidden = padding(hidden=key_padding_mask)
        mask = hidden if mask is None else mask & hidden
    return mask, bias
