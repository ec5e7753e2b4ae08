"""From tokens to tokens: embeddings and positions, a Transformer, a projection to a vocabulary."""

import math
from functools import partial
from typing import Any, Literal, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from . import checks
from .arrays import is_concrete
from .cache import StackCache, zero_hidden
from .layers import new_linear
from .masks import causal, sequence_mask
from .transformer import Transformer, TransformerWeights


class Seq2SeqTransformer(nnx.Module):
    """A Transformer over tokens: padding is hidden, and later targets are hidden.

    With `positions` "sinusoidal" an embedding is multiplied by sqrt(d_model) and sinusoids are
    added; with "none" it stands as it is. Positions count tokens and leave out padding, so a
    padded batch gives what its samples give alone, whichever side the padding is on. There is no
    look-ahead mask over the memory: every target attends to the whole source. Takes `Transformer`'s
    other settings.

    Source: "Attention Is All You Need", sections 3.4 and 3.5.

    >>> model = Seq2SeqTransformer(11, 13, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, dim_feedforward=32, rngs=nnx.Rngs(0))
    >>> model(jnp.array([[5, 3, 0]]), jnp.array([[1, 7, 9, 4]])).shape
    (1, 4, 13)
    """

    def __init__(
        self,
        src_vocab: int,
        tgt_vocab: int,
        *,
        padding_idx: int = 0,
        positions: str = "sinusoidal",
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_first: bool = False,
        bias: bool = True,
        empty_rows: str = "zero",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.check_seq2seq(src_vocab, tgt_vocab, padding_idx, positions, batch_first)
        self.src_vocab, self.tgt_vocab = src_vocab, tgt_vocab
        self.padding_idx, self.positions = padding_idx, positions
        self.transformer = Transformer(
            d_model,
            nhead,
            num_encoder_layers,
            num_decoder_layers,
            dim_feedforward,
            dropout,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
            batch_first=batch_first,
            norm_first=norm_first,
            bias=bias,
            empty_rows=empty_rows,
            dtype=dtype,
            rngs=rngs,
        )
        # With sinusoids an embedding starts at their size, once it is multiplied by sqrt(d_model).
        size = 1 / math.sqrt(d_model) if positions == "sinusoidal" else 1.0
        start = nnx.initializers.normal(size)
        embed = partial(nnx.Embed, param_dtype=dtype, embedding_init=start, rngs=rngs)
        self.src_embedding = embed(src_vocab, d_model)
        self.tgt_embedding = embed(tgt_vocab, d_model)
        self.projection = new_linear(d_model, tgt_vocab, dtype=dtype, rngs=rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs if dropout > 0 else None)
        for embedding in (self.src_embedding.embedding, self.tgt_embedding.embedding):
            embedding[...] = embedding[...].at[padding_idx].set(0)

    @overload
    def __call__(
        self,
        src: Integer[Array, "B S"],
        tgt: Integer[Array, "B T"],
        *,
        need_weights: Literal[False] = ...,
    ) -> Float[Array, "B T V"]: ...

    @overload
    def __call__(
        self,
        src: Integer[Array, "B S"],
        tgt: Integer[Array, "B T"],
        *,
        need_weights: Literal[True],
    ) -> tuple[Float[Array, "B T V"], TransformerWeights]: ...

    @overload
    def __call__(
        self,
        src: Integer[Array, "B S"],
        tgt: Integer[Array, "B T"],
        *,
        need_weights: bool = ...,
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], TransformerWeights]: ...

    def __call__(
        self,
        src: Integer[Array, "B S"],
        tgt: Integer[Array, "B T"],
        *,
        need_weights: bool = False,
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], TransformerWeights]:
        """Return logits (B, T, tgt_vocab); with `need_weights` `TransformerWeights` too."""
        checks.check_token_pair(src, tgt, self.src_vocab, self.tgt_vocab)
        src_hidden, tgt_hidden = self._hidden(src), self._hidden(tgt)
        result: Any = self.transformer(
            self._embed(self.src_embedding, src, src_hidden, 0, src.shape[1]),
            self._embed(self.tgt_embedding, tgt, tgt_hidden, 0, tgt.shape[1]),
            tgt_mask=causal(),
            src_key_padding_mask=src_hidden,
            tgt_key_padding_mask=tgt_hidden,
            memory_key_padding_mask=src_hidden,
            need_weights=need_weights,
        )
        if not need_weights:
            return self._logits(result)
        output, weights = result
        return self._logits(output), weights

    def start(self, src: Integer[Array, "B S"], capacity: int) -> StackCache:
        """Encode the source and return caches for `capacity` target tokens a sample.

        None of them has a window: every target attends to all that are before it.
        """
        checks.check_token_array("src", src, ("B", "S"), self.src_vocab)
        hidden = self._hidden(src)
        x = self._embed(self.src_embedding, src, hidden, 0, src.shape[1])
        return self.transformer.start(
            x, capacity, src_key_padding_mask=hidden, memory_key_padding_mask=hidden
        )

    def decode(
        self, tgt: Integer[Array, "B T"], cache: StackCache
    ) -> tuple[Float[Array, "B T V"], StackCache]:
        """Take new target tokens; return their logits, and the cache.

        Padding is neither stored nor counted, and its logits are 0.
        """
        self.transformer.decoder._check_depth(cache)
        checks.check_token_array("tgt", tgt, ("B", "T"), self.tgt_vocab)
        checks.check_token_batch(tgt, cache)
        checks.check_all_kept(cache)
        hidden = self._hidden(tgt)
        first = cache.lengths[:, None]
        tokens = self._embed(self.tgt_embedding, tgt, hidden, first, cache.capacity)
        output, cache = self.transformer.decode(tokens, cache, hidden=hidden)
        return zero_hidden(self._logits(output), hidden, True), cache

    def _logits(self, x: Array) -> Array:
        logits = self.projection(x)
        checks.check_given("projection", logits, (*x.shape[:2], self.tgt_vocab))
        return logits

    def _hidden(self, tokens: Array) -> Array:
        return sequence_mask(tokens, self.padding_idx)

    def _embed(
        self,
        embedding: nnx.Embed,
        tokens: Array,
        hidden: Array,
        first: int | Array | np.ndarray,
        count: int,
    ) -> Array:
        """Return (B, T, E); tokens stand from position `first` on, padding left out."""
        vocab = self.src_vocab if embedding is self.src_embedding else self.tgt_vocab
        checks.check_embedding(getattr(embedding, "num_embeddings", vocab), vocab)
        x = embedding(tokens)
        if self.positions == "sinusoidal":
            positions = first + jnp.maximum(jnp.cumsum(~hidden, 1) - 1, 0)
            places = sinusoids(positions, x.shape[2], x.dtype, count=count)
            x = x * math.sqrt(x.shape[2]) + places
        return self.drop(x)


def sinusoids(
    positions: Integer[Array | np.ndarray, "B T"],
    features: int,
    dtype: DTypeLike = jnp.float32,
    *,
    count: int = 0,
) -> Float[Array, "B T E"]:
    """Return the paper's positional encodings (B, T, E): sines at even features, cosines at odd.

    Their angles need float64, which a traced function may not have: where positions are traced
    they are looked up in a table of `count` positions, and beyond it stands NaN. Where `count` is
    not known either, in two tables that reach to 2**18.

    >>> sinusoids(jnp.array([[0, 1]]), 2).round(3)
    Array([[[0.   , 1.   ],
            [0.841, 0.54 ]]], dtype=float32)
    """
    if is_symbolic_dim(count):
        return _summed_sinusoids(positions, features).astype(dtype)
    if not is_concrete(positions):
        table = sinusoids(np.arange(count)[None], features, dtype)[0]
        return jnp.take(table, positions, 0, mode="fill", fill_value=jnp.nan)
    feature = np.arange(features)
    angles = np.asarray(positions)[..., None] * 10000.0 ** (-(feature // 2 * 2) / features)
    return jnp.asarray(np.where(feature % 2, np.cos(angles), np.sin(angles)).astype(dtype))


def _summed_sinusoids(positions: Array | np.ndarray, features: int) -> Array:
    """Look up multiples of 512 and the rest apart: exp(i (a + b)) = exp(i a) exp(i b)."""
    feature = np.arange(features)
    angles = np.arange(512)[:, None] * 10000.0 ** (-(feature // 2 * 2) / features)
    far, near = jnp.asarray(np.exp(512j * angles)), jnp.asarray(np.exp(1j * angles))
    far = jnp.take(far, positions // 512, 0, mode="fill", fill_value=jnp.nan)
    both = far * jnp.take(near, positions % 512, 0)
    return jnp.where(feature % 2, both.real, both.imag)
