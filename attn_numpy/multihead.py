"""Multi-head attention with torch's call: `attn(query, key, value, ...)`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from numpy.typing import DTypeLike

from . import checks
from .arrays import dtype_name
from .attention import attend, attend_steps
from .cache import KVCache, pack, restored_on_error, unpack
from .call import Call
from .layers import Linear, Module
from .masks import Mask, allow, causal, hide, padding
from .numerics import scale_or_default, without_warnings
from .tiles import Cells, Tiles
from .window import WindowCache

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class MultiHeadAttention(Module):
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

    >>> attn = MultiHeadAttention(512, 8, rng=np.random.default_rng(0))
    >>> output, weights = attn(np.ones((2, 7, 512), np.float32))
    >>> output.shape, weights.shape
    ((2, 7, 512), (2, 7, 7))
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
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ):
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
        self.rng = np.random.default_rng(rng)
        q_dim, kv_dim = num_heads * head_dim, num_kv_heads * head_dim
        self.q_proj = Linear(embed_dim, q_dim, bias=qkv_bias, dtype=dtype, rng=self.rng)
        self.k_proj = Linear(kdim, kv_dim, bias=qkv_bias, dtype=dtype, rng=self.rng)
        self.v_proj = Linear(vdim, kv_dim, bias=qkv_bias, dtype=dtype, rng=self.rng)
        self.out_proj = Linear(q_dim, embed_dim, bias=bias, dtype=dtype, rng=self.rng)
        self.sinks = np.zeros(num_heads, dtype) if sinks else None

    @without_warnings
    def __call__(
        self,
        query: Float[np.ndarray, "_ _ E"],
        key: Float[np.ndarray, "_ _ kdim"] | KVCache | None = None,
        value: Float[np.ndarray, "_ _ vdim"] | None = None,
        *,
        key_padding_mask: Mask | Bool[np.ndarray, "B S"] | None = None,
        attn_mask: Mask | Shaped[np.ndarray, "..."] | None = None,
        need_weights: bool = True,
        average_weights: bool = True,
        query_offset: int | Integer[np.ndarray, "..."] | None = None,
    ) -> tuple[Float[np.ndarray, "_ _ E"], Float[np.ndarray, "..."] | None]:
        """Attend from query to key and value; `key=None` is self-attention, `value=None` is key.

        Inputs are (B, T, E), or (T, B, E) with `batch_first=False`; a `KVCache` as `key` is what
        was projected before. In `key_padding_mask` (B, S) and a bool `attn_mask` True hides; a
        float `attn_mask` is added to the scores; it has rank 2 (T, S), 3 (B*H, T, S) or 4 (B, H,
        T, S). Either may be a `Mask` instead. Returns the output, shaped like the query, and the
        weights: (B, T, S) as the mean over heads, (B, H, T, S) with `average_weights=False`, None
        with `need_weights=False`. Raises as `attention` does.
        """
        if self.process_heads is not None:
            checks.check_same_tokens(key is None or key is query, query_offset)
        query, keys, values = self._check_inputs(query, key, value)
        call = self._check_masks(query, keys, key_padding_mask, attn_mask, query_offset)
        heads = self._project_query(query)
        if not isinstance(keys, KVCache):
            if call.mask is not None and call.sizes[2] and call.empty_rows != "uniform":
                rows = (call.sizes, call.query_offset)
                keys, values = _zero_hidden_keys(keys, values, call.mask, *rows)
            projected, values = self._project_heads(keys, values)
            heads, projected = self._process(heads, projected)
            keys = self._full_cache(projected, values)
        output, weights = self._attend(heads, keys, call, need_weights)
        if weights is not None and average_weights:
            weights = weights.mean(1)
        return output, weights

    def new_cache(
        self, batch_size: int, capacity: int | None = None, *, window: int | None = None
    ) -> KVCache:
        """Return an empty cache for `decode`, of `capacity` slots a sample, or of a window.

        With `window=before` decoding is `sliding_window(before)`, in memory that does not grow.
        Its dtype is that of the weights, and float32 where there are no float weights:
        `KVCache.empty` makes others.
        """
        checks.check_one_of("capacity", capacity, "window", window)
        if window is not None:
            checks.check_count("window", window, 0)
        kind = KVCache if window is None else WindowCache
        slots: Any = capacity if window is None else window + 1
        held = [getattr(owner, name) for owner, name in self.parameters().values()]
        held = [getattr(self.k_proj, "weight", None), *held]
        dtype = next((array.dtype for array in held if checks.float_name(array)), np.float32)
        return kind.empty(batch_size, self.num_kv_heads, slots, self.head_dim, dtype=dtype)

    def project(
        self,
        key: Float[np.ndarray, "_ _ kdim"],
        value: Float[np.ndarray, "_ _ vdim"] | None = None,
    ) -> KVCache:
        """Project keys and values once, for many calls: a full cache, to be given as `key`."""
        if self.process_heads is not None:
            checks.check_same_tokens(False, None)
        value = key if value is None else value
        checks.check_memory(key, value, self._dims(), self._dtype(key), self.batch_first)
        return self._full_cache(
            *self._project_heads(self._batch_first(key), self._batch_first(value))
        )

    def decode(
        self,
        x: Float[np.ndarray, "_ _ E"],
        cache: KVCache,
        *,
        hidden: Bool[np.ndarray, "B T"] | None = None,
        attn_mask: Mask | None = None,
    ) -> tuple[Float[np.ndarray, "_ _ E"], KVCache]:
        """Attend from new tokens to themselves and to those before: a prompt, a chunk, a step.

        Their keys and values are written behind the cache's, and the cache is handed on: the one
        given is consumed. `attn_mask` is over T queries and all slots, `causal()` where left out.
        Tokens that `hidden` marks are neither stored nor counted, wherever they stand, and their
        output is 0; positions count what is stored. Raises ValueError beyond the capacity.

        >>> attn = MultiHeadAttention(8, 2, rng=np.random.default_rng(0))
        >>> x = np.random.default_rng(1).normal(size=(1, 5, 8)).astype(np.float32)
        >>> prompt, cache = attn.decode(x[:, :4], attn.new_cache(1, 5))
        >>> step, cache = attn.decode(x[:, 4:], cache)
        >>> np.allclose(step, attn(x, attn_mask=causal())[0][:, 4:], atol=1e-6)
        True
        """
        counts = self._check_decode(x, cache, hidden, attn_mask)
        packed = pack(x, hidden, self.batch_first)
        with restored_on_error(cache):
            output, written = self._decode_packed(packed, cache, counts, attn_mask)
            return unpack(output, hidden, self.batch_first), written

    def _decode_packed(
        self, x: np.ndarray, cache: KVCache, counts: np.ndarray | None, mask: Mask | None
    ) -> tuple[np.ndarray, KVCache]:
        """Decode checked tokens. Hidden ones stand last, and `counts` leaves them out."""
        x, first = self._batch_first(x), cache.lengths
        key, value = self._project_heads(x, x)
        query, key = self._process(self._project_query(x), key, first)
        if isinstance(cache, WindowCache):
            return self._decode_window(query, key, value, cache, counts)
        cache = cache._append(key, value, counts)
        if mask is None:
            return self._attend_slots(query, cache, first), cache
        sizes = (x.shape[0], self.num_heads, x.shape[1], cache.capacity)
        call = self._new_call(sizes, mask, None, first)
        return self._attend(query, cache, call, False)[0], cache

    def _decode_window(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        cache: WindowCache,
        counts: np.ndarray | None,
    ) -> tuple[np.ndarray, KVCache]:
        """Decode into a ring: a step writes and looks at all slots, a chunk looks, then writes."""
        if query.shape[2] == 1:
            written = cache._append(key, value, counts)
            slots = written.slots()
            return self._attend_slots(query, slots, slots.lengths - 1), written
        keys, values, mask = cache.beside(key, value, counts)
        sizes = (*query.shape[:3], keys.shape[2])
        checks.check_projected(query, keys, values, sizes)
        output = attend(query, keys, values, self._new_call(sizes, mask, None, 0))
        output = self._join_heads(output)
        return output, cache._append(key, value, counts)

    def _check_inputs(
        self, query: np.ndarray, key: np.ndarray | KVCache | None, value: np.ndarray | None
    ) -> tuple[np.ndarray, Any, Any]:
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
        query: np.ndarray,
        key: np.ndarray | KVCache,
        key_padding_mask: Mask | np.ndarray | None,
        attn_mask: Mask | np.ndarray | None,
        query_offset: int | np.ndarray | None,
    ) -> Call:
        """Return the call of an attention from checked inputs, batch first."""
        keys = key.capacity if isinstance(key, KVCache) else key.shape[1]
        sizes = (query.shape[0], self.num_heads, query.shape[1], keys)
        mask, bias = _read_masks(key_padding_mask, attn_mask, query, sizes)
        checks.check_mask(mask, sizes)
        query_offset = checks.check_query_offset(query_offset, mask, sizes)
        return self._new_call(sizes, mask, bias, query_offset)

    def _check_decode(
        self, x: np.ndarray, cache: KVCache, hidden: np.ndarray | None, mask: Mask | None
    ) -> np.ndarray | None:
        """Refuse a wrong call before anything is written; return how many tokens are not hidden."""
        self._check_settings()
        checks.check_is_cache(cache, KVCache)
        checks.check_decode(x, cache, hidden, self._dims(), self._dtype(x), self.batch_first)
        batch, steps = x.shape[:2] if self.batch_first else x.shape[1::-1]
        if mask is not None:
            checks.check_no_window(cache, "attn_mask")
            checks.check_is_mask("attn_mask must be a Mask", mask, Mask)
            checks.check_mask(mask, (batch, self.num_heads, steps, cache.capacity))
            if hidden is not None:
                checks.check_movable("attn_mask", mask)
        counts = None if hidden is None else (~hidden).sum(1)
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
        return dims | {"kv_heads": self.num_kv_heads, "head_dim": self.head_dim}

    def _dtype(self, x: np.ndarray) -> str:
        """Return the dtype of the weights, or that of x where no projection has float ones."""
        for name in PROJECTIONS:
            dtype = checks.float_name(getattr(getattr(self, name), "weight", None))
            if dtype:
                return dtype
        return checks.float_name(x) or "float32"

    def _batch_first(self, x: np.ndarray) -> np.ndarray:
        """Put the batch first, or back to where the caller has it."""
        return x if self.batch_first else x.swapaxes(0, 1)

    def _new_call(
        self,
        sizes: tuple[int, int, int, int],
        mask: Mask | None,
        bias: np.ndarray | None,
        query_offset: int | np.ndarray,
    ) -> Call:
        dropout = self.dropout if self.training else 0.0
        scale = scale_or_default(self.scale, self.head_dim)
        softcap = None if self.softcap is None else float(self.softcap)
        sinks = self.sinks
        empty_rows = self.empty_rows if sinks is None else "zero"  # what is left goes to the sink
        told = (mask, bias, scale, softcap, sinks, empty_rows)
        return Call(sizes, *told, query_offset, dropout, self.rng)

    def _full_cache(self, key: np.ndarray, value: np.ndarray) -> KVCache:
        """Return a full cache of projected heads."""
        return KVCache(key, value, np.full(key.shape[0], key.shape[2]))

    def _project_query(self, x: np.ndarray) -> np.ndarray:
        return self._split_heads(self.q_proj(x), self.num_heads)

    def _project_heads(self, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key, value = self.k_proj(key), self.v_proj(value)
        heads = self.num_kv_heads
        return self._split_heads(key, heads), self._split_heads(value, heads)

    def _process(
        self, query: np.ndarray, key: np.ndarray, first: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Let `process_heads` change the heads of tokens from position `first` on, or from 0."""
        if self.process_heads is None:
            return query, key
        places = np.arange(query.shape[2])[None]
        positions = places if first is None else first[:, None] + places
        processed: Any = self.process_heads(query, key, positions)
        checks.check_processed(processed, query, key)
        return processed[0], processed[1]

    def _attend(
        self, query: np.ndarray, cache: KVCache, call: Call, need_weights: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Attend to what is written; return the output, and the weights where needed."""
        weights = None
        if not cache.is_full():
            written = padding(cache.lengths)
            mask = written if call.mask is None else call.mask & written
            call = call._replace(mask=mask)
            if call.empty_rows == "uniform":
                query, call = _uniform(query, mask, written, call)
        checks.check_projected(query, cache.key, cache.value, call.sizes)
        if need_weights:
            _, _, weights, output = attend_steps(query, cache.key, cache.value, call)
        else:
            output = attend(query, cache.key, cache.value, call)
        return self._join_heads(output), weights

    def _attend_cached(self, x: np.ndarray, cache: KVCache, call: Call) -> np.ndarray:
        """Attend from checked x to a cache; x and the output are laid out as the caller's."""
        checks.check_live(cache)  # it may be the one that was just written to
        query = self._project_query(self._batch_first(x))
        return self._attend(query, cache, call, False)[0]

    def _attend_slots(self, query: np.ndarray, cache: KVCache, first: np.ndarray) -> np.ndarray:
        """Attend causally from tokens from position `first` on, one for each sample."""
        last = cache.lengths.max(initial=0)
        key, value = cache.key[:, :, :last], cache.value[:, :, :last]
        sizes = (*query.shape[:3], int(last))
        checks.check_projected(query, key, value, sizes)
        mask: Mask | None = causal()
        position: int | np.ndarray = first
        if len(first) and (first == first[0]).all():
            position = int(first[0])
            mask = None if sizes[2] == 1 else mask  # the newest token is allowed every key
        call = self._new_call(sizes, mask, None, position)
        return self._join_heads(attend(query, key, value, call))

    def _split_heads(self, x: np.ndarray, num_heads: int) -> np.ndarray:
        """(B, T, H * D) -> (B, H, T, D); neighbours stay neighbours inside a head."""
        checks.check_heads(x.shape[2], num_heads, self.head_dim)
        return x.reshape(*x.shape[:2], num_heads, self.head_dim).swapaxes(1, 2)

    def _join_heads(self, x: np.ndarray) -> np.ndarray:
        """(B, H, T, D) -> (B, T, E), laid out as the caller has it."""
        x = x.swapaxes(1, 2)
        output = self.out_proj(x.reshape(*x.shape[:2], self.num_heads * self.head_dim))
        checks.check_given("out_proj", output, (*x.shape[:2], self.embed_dim))
        return self._batch_first(output)


def _zero_hidden_keys(
    key: np.ndarray,
    value: np.ndarray,
    mask: Mask,
    sizes: tuple[int, int, int, int],
    query_offset: int | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Put 0 where no query is allowed: what stands there changes no bit of an answer."""
    at = Tiles(Cells(sizes, query_offset), sizes[2], 1)
    some = np.broadcast_to(mask.evaluate(at).any, (*sizes[:2], 1, sizes[3]))
    allowed = np.any(some, (1, 2))[..., None]  # (B, S, 1)
    return np.where(allowed, key, 0), np.where(allowed, value, 0)


def _uniform(query: np.ndarray, mask: Mask, written: Mask, call: Call) -> tuple[np.ndarray, Call]:
    """Allow fully masked rows every written slot alike: their query and bias are 0."""
    cells = Cells(call.sizes, call.query_offset)
    allowed = np.broadcast_to(mask.evaluate(cells), call.sizes)
    bias = call.bias
    if bias is not None:
        allowed = allowed & (bias != -np.inf)
    empty = ~allowed.any(-1, keepdims=True)
    bias = None if bias is None else np.where(empty, 0, bias)
    mask = allow(np.where(empty, written.evaluate(cells), allowed))
    call = call._replace(mask=mask, bias=bias, empty_rows="nan")  # where nothing is written
    return np.where(empty, 0, query), call


def _read_masks(
    key_padding_mask: Mask | np.ndarray | None,
    attn_mask: Mask | np.ndarray | None,
    query: np.ndarray,
    sizes: tuple[int, int, int, int],
) -> tuple[Mask | None, np.ndarray | None]:
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
