"""From tokens to tokens: embeddings and positions, a Transformer, a projection to a vocabulary."""

import math
from functools import partial
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import DTypeLike

from . import checks
from .cache import StackCache, zero_hidden
from .layers import Dropout, Embedding, Linear, Module
from .masks import causal, sequence_mask
from .numerics import without_warnings
from .transformer import Transformer, TransformerWeights


class Seq2SeqTransformer(Module):
    """A Transformer over tokens: padding is hidden, and later targets are hidden.

    With `positions` "sinusoidal" an embedding is multiplied by sqrt(d_model) and sinusoids are
    added; with "none" it stands as it is. Positions count tokens and leave out padding, so a
    padded batch gives what its samples give alone, whichever side the padding is on. There is no
    look-ahead mask over the memory: every target attends to the whole source. Takes `Transformer`'s
    other settings.

    Source: "Attention Is All You Need", sections 3.4 and 3.5.

    >>> model = Seq2SeqTransformer(11, 13, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, dim_feedforward=32).eval()
    >>> model(np.array([[5, 3, 0]]), np.array([[1, 7, 9, 4]])).shape
    (1, 4, 13)
    """

    @without_warnings
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
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ):
        checks.check_seq2seq(src_vocab, tgt_vocab, padding_idx, positions, batch_first)
        self.src_vocab, self.tgt_vocab = src_vocab, tgt_vocab
        self.padding_idx, self.positions = padding_idx, positions
        rng = np.random.default_rng(rng)
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
            rng=rng,
        )
        padded = partial(Embedding, padding_idx=padding_idx, dtype=dtype, rng=rng)
        self.src_embedding = padded(src_vocab, d_model)
        self.tgt_embedding = padded(tgt_vocab, d_model)
        self.projection = Linear(d_model, tgt_vocab, dtype=dtype, rng=rng)
        self.drop = Dropout(dropout, rng=rng)
        if positions == "sinusoidal":  # so that it starts at the size of the sinusoids
            for embedding in (self.src_embedding, self.tgt_embedding):
                embedding.weight /= math.sqrt(d_model)

    @overload
    def __call__(
        self,
        src: Integer[np.ndarray, "B S"],
        tgt: Integer[np.ndarray, "B T"],
        *,
        need_weights: Literal[False] = ...,
    ) -> Float[np.ndarray, "B T V"]: ...

    @overload
    def __call__(
        self,
        src: Integer[np.ndarray, "B S"],
        tgt: Integer[np.ndarray, "B T"],
        *,
        need_weights: Literal[True],
    ) -> tuple[Float[np.ndarray, "B T V"], TransformerWeights]: ...

    @overload
    def __call__(
        self,
        src: Integer[np.ndarray, "B S"],
        tgt: Integer[np.ndarray, "B T"],
        *,
        need_weights: bool = ...,
    ) -> Float[np.ndarray, "B T V"] | tuple[Float[np.ndarray, "B T V"], TransformerWeights]: ...

    def __call__(
        self,
        src: Integer[np.ndarray, "B S"],
        tgt: Integer[np.ndarray, "B T"],
        *,
        need_weights: bool = False,
    ) -> Float[np.ndarray, "B T V"] | tuple[Float[np.ndarray, "B T V"], TransformerWeights]:
        """Return logits (B, T, tgt_vocab); with `need_weights` `TransformerWeights` too."""
        checks.check_token_pair(src, tgt, self.src_vocab, self.tgt_vocab)
        src_hidden, tgt_hidden = self._hidden(src), self._hidden(tgt)
        result: Any = self.transformer(
            self._embed(self.src_embedding, src, src_hidden, 0),
            self._embed(self.tgt_embedding, tgt, tgt_hidden, 0),
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

    def start(self, src: Integer[np.ndarray, "B S"], capacity: int) -> StackCache:
        """Encode the source and return caches for `capacity` target tokens a sample.

        None of them has a window: every target attends to all that are before it.
        """
        checks.check_token_array("src", src, ("B", "S"), self.src_vocab)
        hidden = self._hidden(src)
        x = self._embed(self.src_embedding, src, hidden, 0)
        return self.transformer.start(
            x, capacity, src_key_padding_mask=hidden, memory_key_padding_mask=hidden
        )

    def decode(
        self, tgt: Integer[np.ndarray, "B T"], cache: StackCache
    ) -> tuple[Float[np.ndarray, "B T V"], StackCache]:
        """Take new target tokens; return their logits, and the cache.

        Padding is neither stored nor counted, and its logits are 0.
        """
        self.transformer.decoder._check_depth(cache)
        checks.check_token_array("tgt", tgt, ("B", "T"), self.tgt_vocab)
        checks.check_token_batch(tgt, cache)
        checks.check_all_kept(cache)
        hidden = self._hidden(tgt)
        tokens = self._embed(self.tgt_embedding, tgt, hidden, cache.lengths[:, None])
        output, cache = self.transformer.decode(tokens, cache, hidden=hidden)
        return zero_hidden(self._logits(output), hidden, True), cache

    def _logits(self, x: np.ndarray) -> np.ndarray:
        logits = self.projection(x)
        checks.check_given("projection", logits, (*x.shape[:2], self.tgt_vocab))
        return logits

    def _hidden(self, tokens: np.ndarray) -> np.ndarray:
        return sequence_mask(tokens, self.padding_idx)

    @without_warnings
    def _embed(
        self, embedding: Embedding, tokens: np.ndarray, hidden: np.ndarray, first: int | np.ndarray
    ) -> np.ndarray:
        """Return (B, T, E); tokens stand from position `first` on, padding left out."""
        vocab = self.src_vocab if embedding is self.src_embedding else self.tgt_vocab
        checks.check_embedding(len(embedding.weight), vocab)
        x = embedding(tokens)
        if self.positions == "sinusoidal":
            positions = first + np.maximum(np.cumsum(~hidden, 1) - 1, 0)
            x = x * x.dtype.type(math.sqrt(x.shape[2])) + sinusoids(positions, x.shape[2], x.dtype)
        return self.drop(x)


def sinusoids(
    positions: Integer[np.ndarray, "B T"], features: int, dtype: DTypeLike = np.float32
) -> Float[np.ndarray, "B T E"]:
    """Return the paper's positional encodings (B, T, E): sines at even features, cosines at odd.

    >>> sinusoids(np.array([[0, 1]]), 2).round(3)
    array([[[0.   , 1.   ],
            [0.841, 0.54 ]]], dtype=float32)
    """
    feature = np.arange(features)
    angles = positions[..., None] * 10000.0 ** (-(feature // 2 * 2) / features)  # float64
    return np.where(feature % 2, np.cos(angles), np.sin(angles)).astype(dtype)
