"""Multi-head attention with the documents' call: `attn(query, key, value, ...)`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer, Shaped

from . import checks
from .arrays import dtype_name, is_concrete
from .attention import attention, attention_steps
from .cache import KVCache, pack, unpack
from .layers import Linear
from .masks import Mask, allow, causal, hide, padding
from .tiles import Cells, Tiles


class MultiHeadAttention(nnx.Module):
    """Project to heads, attend in each, join the heads by a last linear map W^o.

    The number of parameters does not depend on `num_heads`: 4 (E^2 + E) with the defaults.
    Weights start Xavier-uniform, every bias at zero. `num_kv_heads` below `num_heads` shares each
    key/value head between neighbouring query heads. Raises ValueError where sizes do not divide.

    Source: "Attention Is All You Need", section 3.2.2.

    >>> attn = MultiHeadAttention(512, 8, rngs=nnx.Rngs(0))
    >>> output, weights = attn(jnp.ones((2, 7, 512)))
    >>> output.shape, weights.shape
    ((2, 7, 512), (2, 7, 7))
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
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        checks.check_multihead(embed_dim, num_heads, num_kv_heads, kdim, vdim, dropout, empty_rows)
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.kdim, self.vdim, self.head_dim = kdim, vdim, embed_dim // num_heads
        self.dropout, self.batch_first, self.empty_rows = dropout, batch_first, empty_rows
        self.bias = bias
        self.deterministic = False  # `train()` and `eval()` of nnx switch it
        self.rngs = rngs.fork() if dropout > 0 else None
        kv_dim = num_kv_heads * self.head_dim
        kernel_init = nnx.initializers.xavier_uniform()
        options = {"use_bias": bias, "param_dtype": dtype, "kernel_init": kernel_init, "rngs": rngs}
        self.q_proj = Linear(embed_dim, embed_dim, **options)
        self.k_proj = Linear(kdim, kv_dim, **options)
        self.v_proj = Linear(vdim, kv_dim, **options)
        self.out_proj = Linear(embed_dim, embed_dim, **options)

    def __call__(
        self,
        query: Float[Array, "_ _ E"],
        key: Float[Array, "_ _ kdim"] | KVCache | None = None,
        value: Float[Array, "_ _ vdim"] | None = None,
        *,
        key_padding_mask: Mask | Bool[Array, "B S"] | None = None,
        attn_mask: Mask | Shaped[Array, "..."] | None = None,
        need_weights: bool = True,
        average_weights: bool = True,
        query_offset: int | Integer[Array | np.ndarray, "..."] | None = None,
    ) -> tuple[Float[Array, "_ _ E"], Float[Array, "..."] | None]:
        """Attend from query to key and value; `key=None` is self-attention, `value=None` is key.

        Inputs are (B, T, E), or (T, B, E) with `batch_first=False`; a `KVCache` as `key` is what
        was projected before. In `key_padding_mask` (B, S) and a bool `attn_mask` True hides; a
        float `attn_mask` is added to the scores; it has rank 2 (T, S), 3 (B*H, T, S) or 4 (B, H,
        T, S). Either may be a `Mask` instead. Returns the output, shaped like the query, and the
        weights: (B, T, S) as the mean over heads, (B, H, T, S) with `average_weights=False`, None
        with `need_weights=False`. Raises as `attention` does.
        """
        masks: Any = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
        given = self.prepare(query, key, value, **masks, query_offset=query_offset)
        query, key, value, mask, bias, query_offset = given
        if not isinstance(key, KVCache):
            if mask is not None and query.shape[1] and self.empty_rows != "uniform":
                sizes = (len(query), self.num_heads, query.shape[1], key.shape[1])
                key, value = _without_unseen(key, value, mask, sizes, query_offset)
            key = self._project(key, value)
        heads = _split_heads(self.q_proj(query), self.num_heads)
        output, weights = self._attend(heads, key, mask, bias, query_offset, need_weights)
        if weights is not None and average_weights:
            weights = weights.mean(1)
        return self._first(self.out_proj(_merge_heads(output))), weights

    def prepare(
        self, query, key, value=None, *, key_padding_mask=None, attn_mask=None, query_offset=None
    ) -> tuple[Any, ...]:
        """Refuse a wrong call; return inputs with the batch first, mask, bias, and the offset."""
        query, key, value = self._inputs(query, key, value)
        keys = key.capacity if isinstance(key, KVCache) else key.shape[1]
        sizes = (query.shape[0], self.num_heads, query.shape[1], keys)
        mask, bias = _read_masks(key_padding_mask, attn_mask, query, sizes)
        checks.check_mask(mask, sizes)
        return query, key, value, mask, bias, checks.check_query_offset(query_offset, mask, sizes)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty cache for `decode`, of `capacity` slots a sample."""
        dtype = self.k_proj.kernel.dtype
        return KVCache.empty(batch_size, self.num_kv_heads, capacity, self.head_dim, dtype=dtype)

    def project(
        self,
        key: Float[Array, "_ _ kdim"],
        value: Float[Array, "_ _ vdim"] | None = None,
    ) -> KVCache:
        """Project keys and values once, for many calls: a full cache, to be given as `key`."""
        value = key if value is None else value
        checks.check_memory(key, value, self._dims(), self._dtype(key), self.batch_first)
        return self._project(self._first(key), self._first(value))

    def decode(
        self,
        x: Float[Array, "_ _ E"],
        cache: KVCache,
        *,
        hidden: Bool[Array, "B T"] | None = None,
        attn_mask: Mask | None = None,
    ) -> tuple[Float[Array, "_ _ E"], KVCache]:
        """Attend from new tokens to themselves and to those before: a prompt, a chunk, a step.

        Their keys and values are written behind the cache's, into the cache that is handed on.
        `attn_mask` is over T queries and all slots, `causal()` where left out. Tokens that `hidden`
        marks are neither stored nor counted, wherever they stand, and their output is 0; positions
        count what is stored. Beyond the capacity it raises ValueError; under jax.jit, where lengths
        are not known, the sample's output is NaN from then on.

        >>> attn = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(1), (1, 5, 8))
        >>> prompt, cache = attn.decode(x[:, :4], attn.new_cache(1, 5))
        >>> step, cache = attn.decode(x[:, 4:], cache)
        >>> bool(jnp.allclose(step, attn(x, attn_mask=causal())[0][:, 4:], atol=1e-6))
        True
        """
        sizes = self._check_decode(x, cache, hidden, attn_mask)
        counts = None if hidden is None else (~hidden).sum(1)
        checks.check_room(cache, sizes[2] if counts is None else counts)
        if hidden is not None:
            x, order = pack(x, hidden, self.batch_first)
        x, first = self._first(x), cache.lengths
        new = self._project(x, x)
        cache = cache.append(new.key, new.value, counts)
        query = _split_heads(self.q_proj(x), self.num_heads)
        output = self._attend_slots(query, cache, attn_mask, first)
        output = self._first(self.out_proj(_merge_heads(output)))
        if hidden is not None:
            output = unpack(output, hidden, order, self.batch_first)
        return output, cache

    def _inputs(self, query, key, value):
        """Return checked inputs, batch first."""
        dims, dtype = self._dims(), self._dtype(query)
        if isinstance(key, KVCache):
            checks.check_cached(query, key, value, dims, dtype, self.batch_first)
            return self._first(query), key, None
        key = query if key is None else key
        value = key if value is None else value
        checks.check_inputs(query, key, value, dims, dtype, self.batch_first)
        return self._first(query), self._first(key), self._first(value)

    def _dims(self) -> dict[str, int]:
        dims = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        return dims | {"kv_heads": self.num_kv_heads, "head_dim": self.head_dim}

    def _dtype(self, x) -> str:
        """Return the dtype of the weights; a layer put in place of a projection may have none."""
        return dtype_name(getattr(self.q_proj, "kernel", x))

    def _first(self, x):
        """Put the batch first, or back to where the caller has it."""
        return x if self.batch_first else x.swapaxes(0, 1)

    def _project(self, key, value) -> KVCache:
        heads = self.num_kv_heads
        key, value = self.k_proj(key), self.v_proj(value)
        lengths: Any = np.full(key.shape[0], key.shape[1], np.int32)  # known under jax.jit too
        return KVCache(_split_heads(key, heads), _split_heads(value, heads), lengths)

    def _attend(self, query, cache: KVCache, mask, bias, query_offset, need_weights: bool):
        """Attend to what is written; return the output, and the weights where needed."""
        options = self._options(query_offset)
        if not cache.is_full():
            written = padding(cache.lengths)
            mask = written if mask is None else mask & written
            if self.empty_rows == "uniform":
                query, mask, bias = _uniform(query, cache, mask, bias, query_offset)
                options["empty_rows"] = "nan"  # where nothing is written
        options |= {"mask": mask, "bias": bias}
        if not need_weights:
            return _lose(attention(query, cache.key, cache.value, **options), cache), None
        _, _, weights, output = attention_steps(query, cache.key, cache.value, **options)
        return _lose(output, cache), _lose(weights, cache)

    def _options(self, query_offset) -> dict[str, Any]:
        dropout = 0.0 if self.deterministic else self.dropout
        options = {"empty_rows": self.empty_rows, "query_offset": query_offset}
        return options | {"dropout": dropout, "rngs": self.rngs}

    def _check_decode(self, x, cache, hidden, mask) -> tuple[int, int, int, int]:
        """Refuse a wrong call before anything is written; return its (B, H, T, S)."""
        checks.check_is_cache(cache, KVCache)
        checks.check_decode(x, cache, hidden, self._dims(), self._dtype(x), self.batch_first)
        batch, steps = x.shape[:2] if self.batch_first else x.shape[1::-1]
        sizes = (batch, self.num_heads, steps, cache.capacity)
        if mask is not None:
            checks.check_is_mask("attn_mask must be a Mask", mask, Mask)
            checks.check_mask(mask, sizes)
            if hidden is not None:
                checks.check_movable("attn_mask", mask)
        return sizes

    def _attend_slots(self, query, cache: KVCache, mask, first):
        """Attend from queries that stand from position `first` on, one for each sample."""
        if mask is not None:
            return self._attend(query, cache, mask, None, first, False)[0]
        options = self._options(first) | {"mask": causal()}
        return _lose(attention(query, cache.key, cache.value, **options), cache)


@partial(jax.jit, static_argnames="sizes")
def _without_unseen(key, value, mask, sizes, query_offset):
    """Put 0 where no query looks: in a parameter's gradient NaN would not be hidden."""
    at = Tiles(Cells(sizes, query_offset, xp=jnp), sizes[2], 1)
    some = jnp.broadcast_to(mask.evaluate(at).any, (*sizes[:2], 1, sizes[3]))
    seen = some.any((1, 2))[..., None]  # (B, S, 1)
    return jnp.where(seen, key, 0), jnp.where(seen, value, 0)


def _uniform(query, cache: KVCache, mask, bias, query_offset):
    """Let rows that may see nothing see every written slot alike: their query and bias are 0."""
    sizes = (*query.shape[:3], cache.capacity)
    seen = jnp.broadcast_to(mask.evaluate(Cells(sizes, query_offset, xp=jnp)), sizes)
    if bias is not None:
        seen = seen & (bias != -jnp.inf)
    empty = ~seen.any(-1, keepdims=True)
    written = padding(cache.lengths).evaluate(Cells(sizes, xp=jnp))
    bias = None if bias is None else jnp.where(empty, 0, bias)
    return jnp.where(empty, 0, query), allow(jnp.where(empty, written, seen)), bias


def _lose(array, cache: KVCache):
    """Put NaN into samples that were written beyond the capacity, where none could be refused."""
    if is_concrete(cache.lengths):
        return array
    lost = cache.lengths > cache.capacity
    return jnp.where(lost[:, None, None, None], jnp.nan, array)


def _split_heads(x, num_heads: int):
    """(B, T, H * D) -> (B, H, T, D); neighbours stay neighbours inside a head."""
    batch, length, features = x.shape
    return x.reshape(batch, length, num_heads, features // num_heads).swapaxes(1, 2)


def _merge_heads(x):
    """(B, H, T, D) -> (B, T, H * D)."""
    batch, heads, length, head_dim = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * head_dim)


def _read_masks(key_padding_mask, attn_mask, query, sizes):
    """Turn the documents' two arguments, in which True hides, into a Mask and a bias."""
    mask, bias = None, None
    if isinstance(attn_mask, Mask):
        mask = attn_mask
    elif attn_mask is not None:
        checks.check_attn_mask(attn_mask, query, sizes)
        if attn_mask.ndim == 3:  # (B*H, T, S), sample-major
            attn_mask = attn_mask.reshape(sizes)
        if dtype_name(attn_mask) != "bool":
            bias = attn_mask
        elif attn_mask.ndim == 2:
            mask = hide(attn_mask[None, None])
        else:
            mask = hide(attn_mask)
    if isinstance(key_padding_mask, Mask):
        mask = key_padding_mask if mask is None else mask & key_padding_mask
    elif key_padding_mask is not None:
        checks.check_key_padding_mask(key_padding_mask, sizes)
        hidden = padding(hidden=key_padding_mask)
        mask = hidden if mask is None else mask & hidden
    return mask, bias
