"""The Transformer of the paper: layers, stacks, and both stacks together.

Names are torch.nn's, so that weights carry over. Every mask is an array in which True hides, or
whose numbers are added, or a `Mask`; a positional memory mask looks at the target's positions.
Every attention's weights can be had with `need_weights`, and every layer and stack can `decode`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from . import checks
from .cache import KVCache, StackCache, pack, unpack
from .layers import Linear
from .masks import Mask
from .multihead import MultiHeadAttention

Options = dict[str, Any]
ACTIVATIONS: Options = {"relu": jax.nn.relu, "gelu": partial(jax.nn.gelu, approximate=False)}
Padding = Mask | Bool[Array, "B _"] | None  # of source and target alike
AnyMask = Mask | Shaped[Array, "..."] | None


class TransformerWeights(NamedTuple):
    """The attention weights of a Transformer, layer by layer, each (B, H, T, S)."""

    encoder: tuple[Float[Array, "B H S S"], ...]
    decoder: tuple[tuple[Float[Array, "B H T T"], Float[Array, "B H T S"]], ...]


class _Layer(nnx.Module):
    """What encoder and decoder layers share: sublayers with residuals, and the last of them."""

    has_memory = False

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_first: bool = False,
        bias: bool = True,
        empty_rows: str = "zero",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.check_layer(dim_feedforward, activation, layer_norm_eps)
        self.d_model, self.nhead, self.dim_feedforward = d_model, nhead, dim_feedforward
        self.dropout, self.activation, self.layer_norm_eps = dropout, activation, layer_norm_eps
        self.batch_first, self.norm_first, self.bias = batch_first, norm_first, bias
        self.empty_rows = empty_rows
        options: Options = {"bias": bias, "dtype": dtype, "rngs": rngs}
        options |= {"dropout": dropout, "batch_first": batch_first, "empty_rows": empty_rows}
        self.self_attn = MultiHeadAttention(d_model, nhead, **options)
        if self.has_memory:
            self.multihead_attn = MultiHeadAttention(d_model, nhead, **options)
        linear: Options = {"use_bias": bias, "param_dtype": dtype, "rngs": rngs}
        linear["kernel_init"] = nnx.initializers.xavier_uniform()
        self.linear1 = Linear(d_model, dim_feedforward, **linear)
        self.linear2 = Linear(dim_feedforward, d_model, **linear)
        self.norm1, self.norm2 = self.new_norm(), self.new_norm()
        if self.has_memory:
            self.norm3 = self.new_norm()
        self.drop = nnx.Dropout(dropout, rngs=rngs if dropout > 0 else None)

    def new_norm(self) -> nnx.LayerNorm:
        """Return one more norm like the layer's own."""
        options: Options = {"use_bias": self.bias, "param_dtype": self.linear1.kernel.dtype}
        options |= {"epsilon": self.layer_norm_eps, "use_fast_variance": False}
        return nnx.LayerNorm(self.d_model, **options, rngs=nnx.Rngs(0))  # it draws nothing

    def _check(self, x) -> None:
        """Refuse what a norm that comes first would let pass, or refuse in other words."""
        if self.norm_first:
            self.self_attn.prepare(x, None)

    def _add(self, x, norm, sublayer):
        """Add to x what a sublayer makes of it, the norm before or after; return its extra too."""
        y, extra = sublayer(norm(x) if self.norm_first else x)
        x = x + self.drop(y)
        return (x if self.norm_first else norm(x)), extra

    def _feed_forward(self, x):
        return self.linear2(self.drop(ACTIVATIONS[self.activation](self.linear1(x)))), None

    def _decode(self, x, cache, hidden, run):
        """Run on tokens of which the hidden ones stand last, so that positions can be counted."""
        checks.check_is_cache(cache, KVCache)
        self._check(x)
        if hidden is None:
            return run(x, None)
        packed, order = pack(x, hidden, self.batch_first)
        y, cache = run(packed, jnp.sort(hidden, 1))
        return unpack(y, hidden, order, self.batch_first), cache


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward net, each with a residual and a layer norm.

    The norm comes after the residual, or before the sublayer with `norm_first`. Raises as
    `MultiHeadAttention` does, and ValueError for an unknown `activation`.

    Source: "Attention Is All You Need", section 3.1.

    >>> from attn_jax import padding
    >>> layer = TransformerEncoderLayer(16, 2, 64, rngs=nnx.Rngs(0))
    >>> x = jax.random.normal(jax.random.key(0), (5, 10, 16))
    >>> output, weights = layer(x, src_key_padding_mask=padding([5, 4, 3, 2, 3]), need_weights=True)
    >>> output.shape, weights.shape
    ((5, 10, 16), (5, 2, 10, 10))
    """

    def __call__(
        self,
        src: Float[Array, "_ _ E"],
        src_mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Any:
        """Return the output, shaped like `src`; with `need_weights` (B, H, S, S) weights too."""
        self._check(src)
        masks: Options = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask}
        masks |= {"need_weights": need_weights, "average_weights": False}
        x, weights = self._add(src, self.norm1, lambda x: self.self_attn(x, **masks))
        x, _ = self._add(x, self.norm2, self._feed_forward)
        return (x, weights) if need_weights else x

    def decode(
        self,
        src: Float[Array, "_ _ E"],
        cache: KVCache,
        *,
        hidden: Bool[Array, "B T"] | None = None,
        src_mask: Mask | None = None,
    ) -> tuple[Float[Array, "_ _ E"], KVCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        decode = self.self_attn.decode

        def run(x, hidden):
            masks: Options = {"hidden": hidden, "attn_mask": src_mask}
            x, written = self._add(x, self.norm1, lambda x: decode(x, cache, **masks))
            return self._add(x, self.norm2, self._feed_forward)[0], written

        return self._decode(src, cache, hidden, run)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to a memory, and a feed-forward net.

    Source: "Attention Is All You Need", section 3.1.

    >>> from attn_jax import causal
    >>> layer = TransformerDecoderLayer(16, 2, 64, rngs=nnx.Rngs(0))
    >>> target, memory = jnp.ones((5, 20, 16)), jnp.ones((5, 10, 16))
    >>> output, (own, cross) = layer(target, memory, causal(), need_weights=True)
    >>> output.shape, own.shape, cross.shape
    ((5, 20, 16), (5, 2, 20, 20), (5, 2, 20, 10))
    """

    has_memory = True

    def __call__(
        self,
        tgt: Float[Array, "_ _ E"],
        memory: Float[Array, "_ _ E"],
        tgt_mask: AnyMask = None,
        memory_mask: AnyMask = None,
        tgt_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Any:
        """Return the output, shaped like `tgt`; with `need_weights` a pair of weights too.

        They are those of the self-attention (B, H, T, T) and of the memory's (B, H, T, S).
        """
        self._check(tgt)
        options: Options = {"need_weights": need_weights, "average_weights": False}
        own: Options = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask}
        own |= options
        x, self_weights = self._add(tgt, self.norm1, lambda x: self.self_attn(x, **own))
        masks: Options = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask}
        x, cross_weights = self._look_at(memory, x, 0, masks | options)
        x, _ = self._add(x, self.norm3, self._feed_forward)
        return (x, (self_weights, cross_weights)) if need_weights else x

    def decode(
        self,
        tgt: Float[Array, "_ _ E"],
        cache: KVCache,
        memory: KVCache,
        *,
        hidden: Bool[Array, "B T"] | None = None,
        tgt_mask: Mask | None = None,
        memory_mask: AnyMask = None,
        memory_key_padding_mask: Padding = None,
    ) -> tuple[Float[Array, "_ _ E"], KVCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache.

        `memory` is `layer.multihead_attn.project(memory)`.
        """
        checks.check_is_cache(cache, KVCache)
        if hidden is not None:
            checks.check_movable("memory_mask", memory_mask)
        first, decode = cache.lengths, self.self_attn.decode
        cross: Options = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask}
        self.multihead_attn.prepare(tgt, memory, **cross, query_offset=first)  # before writing

        def run(x, hidden):
            masks: Options = {"hidden": hidden, "attn_mask": tgt_mask}
            x, written = self._add(x, self.norm1, lambda x: decode(x, cache, **masks))
            x, _ = self._look_at(memory, x, first, cross | {"need_weights": False})
            return self._add(x, self.norm3, self._feed_forward)[0], written

        return self._decode(tgt, cache, hidden, run)

    def _look_at(self, memory, x, first, masks: Options):
        """Attend from targets, which start at position `first`, to the memory."""

        def attend(x):
            return self.multihead_attn(x, memory, query_offset=first, **masks)

        return self._add(x, self.norm2, attend)


class _Stack(nnx.Module):
    """Layers of one class, one after the other, and a last norm."""

    layer_class: Any

    def __init__(
        self, num_layers: int, d_model: int, nhead: int, *args, norm: bool = False, **options
    ):
        checks.check_count("num_layers", num_layers, 1)
        layers = range(num_layers)
        new = partial(self.layer_class, d_model, nhead, *args, **options)
        self.layers = nnx.List([new() for _ in layers])
        self.norm = self.layers[0].new_norm() if norm else None

    def _run(self, x, given: tuple, need_weights: bool):
        """Run all layers, each with what else is given; collect their weights where needed."""
        found = []
        for layer in self.layers:
            result = layer(x, *given, need_weights=need_weights)
            x, weights = result if need_weights else (result, None)
            found.append(weights)
        return (self._end(x), tuple(found)) if need_weights else self._end(x)

    def _end(self, x):
        return x if self.norm is None else self.norm(x)

    def _new_caches(self, batch_size: int, capacity: int) -> tuple[KVCache, ...]:
        return tuple(layer.self_attn.new_cache(batch_size, capacity) for layer in self.layers)

    def _check_decode(self, x, cache, hidden) -> list[KVCache]:
        """Refuse before the first layer has written; return where the caches are collected."""
        checks.check_is_cache(cache, StackCache)
        batch_first = self.layers[0].batch_first
        memories = len(self.layers) if self.layer_class.has_memory else 0
        checks.check_stack_decode(x, cache, hidden, len(self.layers), memories, batch_first)
        return []


class TransformerEncoder(_Stack):
    """A stack of encoder layers, and a last norm if `norm`.

    Takes the settings of `TransformerEncoderLayer`. With `decode` it is a language model's body.

    Source: "Attention Is All You Need", section 3.1.

    >>> encoder = TransformerEncoder(3, 16, 2, 64, norm=True, rngs=nnx.Rngs(0))
    >>> output, weights = encoder(jnp.ones((5, 10, 16)), need_weights=True)
    >>> output.shape, len(weights)
    ((5, 10, 16), 3)
    """

    layer_class = TransformerEncoderLayer

    def __call__(
        self,
        src: Float[Array, "_ _ E"],
        mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Any:
        """Return the output, shaped like `src`; with `need_weights` each layer's weights too."""
        return self._run(src, (mask, src_key_padding_mask), need_weights)

    def start(self, batch_size: int, capacity: int) -> StackCache:
        """Return empty caches for `decode`, of `capacity` positions a sample."""
        return StackCache(self._new_caches(batch_size, capacity))

    def decode(
        self,
        src: Float[Array, "_ _ E"],
        cache: StackCache,
        *,
        hidden: Bool[Array, "B T"] | None = None,
        mask: Mask | None = None,
    ) -> tuple[Float[Array, "_ _ E"], StackCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        written = self._check_decode(src, cache, hidden)
        for layer, own in zip(self.layers, cache.layers, strict=True):
            src, own = layer.decode(src, own, hidden=hidden, src_mask=mask)
            written.append(own)
        return self._end(src), cache.with_layers(written)


class TransformerDecoder(_Stack):
    """A stack of decoder layers, and a last norm if `norm`.

    Takes the settings of `TransformerDecoderLayer`.

    Source: "Attention Is All You Need", section 3.1.

    >>> decoder = TransformerDecoder(3, 16, 2, 64, rngs=nnx.Rngs(0))
    >>> cache = decoder.start(jnp.ones((5, 10, 16)), capacity=20)  # projects it, once a layer
    >>> output, cache = decoder.decode(jnp.ones((5, 1, 16)), cache)
    >>> output.shape, cache.lengths
    ((5, 1, 16), Array([1, 1, 1, 1, 1], dtype=int32))
    """

    layer_class = TransformerDecoderLayer

    def __call__(
        self,
        tgt: Float[Array, "_ _ E"],
        memory: Float[Array, "_ _ E"],
        tgt_mask: AnyMask = None,
        memory_mask: AnyMask = None,
        tgt_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Any:
        """Return the output, shaped like `tgt`; with `need_weights` each layer's pair too."""
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return self._run(tgt, (memory, *masks), need_weights)

    def start(
        self,
        memory: Float[Array, "_ _ E"],
        capacity: int,
        *,
        memory_key_padding_mask: Padding = None,
    ) -> StackCache:
        """Return caches for `decode`: empty ones of `capacity` positions, and the memory's."""
        projected = tuple(layer.multihead_attn.project(memory) for layer in self.layers)
        batch, keys = projected[0].key.shape[0], projected[0].capacity
        if isinstance(memory_key_padding_mask, Mask):
            hidden = memory_key_padding_mask.hidden(1, keys, query_offset=0, batch=batch)
            memory_key_padding_mask = jnp.broadcast_to(hidden[:, 0, 0], (batch, keys))
        elif memory_key_padding_mask is not None:
            checks.check_key_padding_mask(memory_key_padding_mask, (batch, 1, 1, keys))
        return StackCache(self._new_caches(batch, capacity), projected, memory_key_padding_mask)

    def decode(
        self,
        tgt: Float[Array, "_ _ E"],
        cache: StackCache,
        *,
        hidden: Bool[Array, "B T"] | None = None,
        tgt_mask: Mask | None = None,
        memory_mask: AnyMask = None,
    ) -> tuple[Float[Array, "_ _ E"], StackCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        written = self._check_decode(tgt, cache, hidden)
        masks: Options = {"tgt_mask": tgt_mask, "memory_mask": memory_mask}
        masks |= {"hidden": hidden, "memory_key_padding_mask": cache.memory_key_padding_mask}
        for layer, own, memory in zip(self.layers, cache.layers, cache.memory, strict=True):
            tgt, own = layer.decode(tgt, own, memory, **masks)
            written.append(own)
        return self._end(tgt), cache.with_layers(written)


class Transformer(nnx.Module):
    """Encoder and decoder stack, each with a last norm.

    Takes the settings of the layers. Masks have torch.nn.Transformer's names; none is implied.

    Source: "Attention Is All You Need", section 3.1.

    >>> from attn_jax import causal
    >>> model = Transformer(16, 2, 2, 2, 64, rngs=nnx.Rngs(0))
    >>> src, tgt = jnp.ones((5, 10, 16)), jnp.ones((5, 7, 16))
    >>> output, weights = model(src, tgt, tgt_mask=causal(), need_weights=True)
    >>> output.shape, weights.encoder[0].shape, weights.decoder[1][1].shape
    ((5, 7, 16), (5, 2, 10, 10), (5, 2, 7, 10))
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        **options,
    ):
        sizes = (d_model, nhead, dim_feedforward, dropout)
        self.encoder = TransformerEncoder(num_encoder_layers, *sizes, norm=True, **options)
        self.decoder = TransformerDecoder(num_decoder_layers, *sizes, norm=True, **options)

    def __call__(
        self,
        src: Float[Array, "_ _ E"],
        tgt: Float[Array, "_ _ E"],
        src_mask: AnyMask = None,
        tgt_mask: AnyMask = None,
        memory_mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        tgt_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Any:
        """Return the output, shaped like `tgt`; with `need_weights` `TransformerWeights` too."""
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        if not need_weights:
            return self.decoder(tgt, self.encoder(src, src_mask, src_key_padding_mask), *masks)
        memory, encoder = self.encoder(src, src_mask, src_key_padding_mask, need_weights=True)
        output, decoder = self.decoder(tgt, memory, *masks, need_weights=True)
        return output, TransformerWeights(encoder, decoder)

    def start(
        self,
        src: Float[Array, "_ _ E"],
        capacity: int,
        *,
        src_mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
    ) -> StackCache:
        """Encode the source and return the decoder's caches, of `capacity` positions a sample."""
        memory = self.encoder(src, src_mask, src_key_padding_mask)
        masks = {"memory_key_padding_mask": memory_key_padding_mask}
        return self.decoder.start(memory, capacity, **masks)

    def decode(
        self,
        tgt: Float[Array, "_ _ E"],
        cache: StackCache,
        *,
        hidden: Bool[Array, "B T"] | None = None,
        tgt_mask: Mask | None = None,
        memory_mask: AnyMask = None,
    ) -> tuple[Float[Array, "_ _ E"], StackCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        masks: Options = {"tgt_mask": tgt_mask, "memory_mask": memory_mask}
        return self.decoder.decode(tgt, cache, hidden=hidden, **masks)
