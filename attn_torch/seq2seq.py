"""From tokens to tokens: embeddings and positions, a Transformer, a projection to a vocabulary."""

import math
from functools import partial
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from . import checks, shard_checks
from .arrays import is_concrete
from .cache import StackCache, zero_hidden
from .dtensors import check_gathered
from .layers import Start, new_linear
from .masks import causal, sequence_mask
from .sharded import current_shards
from .transformer import Transformer, TransformerWeights


class Seq2SeqTransformer(nn.Module):
    """A Transformer over tokens: padding is hidden, and later targets are hidden.

    With `positions` "sinusoidal" an embedding is multiplied by sqrt(d_model) and sinusoids are
    added; with "none" it stands as it is. Positions count tokens and leave out padding, so a
    padded batch gives what its samples give alone, whichever side the padding is on. There is no
    look-ahead mask over the memory: every target attends to the whole source. Takes `Transformer`'s
    other settings.

    Source: "Attention Is All You Need", sections 3.4 and 3.5.

    >>> model = Seq2SeqTransformer(11, 13, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, dim_feedforward=32).eval()
    >>> model(torch.tensor([[5, 3, 0]]), torch.tensor([[1, 7, 9, 4]])).shape
    torch.Size([1, 4, 13])
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
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
            device=device,
            dtype=dtype,
        )
        padded = partial(nn.Embedding, padding_idx=padding_idx, device=device, dtype=dtype)
        self.src_embedding = padded(src_vocab, d_model)
        self.tgt_embedding = padded(tgt_vocab, d_model)
        self.projection = new_linear(d_model, tgt_vocab, device=device, dtype=dtype)
        self.drop = nn.Dropout(dropout)
        if positions == "sinusoidal":  # so that it starts at the size of the sinusoids
            for embedding in (self.src_embedding, self.tgt_embedding):
                embedding.weight.data /= math.sqrt(d_model)
                start = Start(embedding, _start_embedding)
                embedding.reset_parameters = start  # type: ignore[method-assign]

    @overload
    def forward(
        self,
        src: Integer[Tensor, "B S"],
        tgt: Integer[Tensor, "B T"],
        *,
        need_weights: Literal[False] = ...,
    ) -> Float[Tensor, "B T V"]: ...

    @overload
    def forward(
        self,
        src: Integer[Tensor, "B S"],
        tgt: Integer[Tensor, "B T"],
        *,
        need_weights: Literal[True],
    ) -> tuple[Float[Tensor, "B T V"], TransformerWeights]: ...

    @overload
    def forward(
        self,
        src: Integer[Tensor, "B S"],
        tgt: Integer[Tensor, "B T"],
        *,
        need_weights: bool = ...,
    ) -> Float[Tensor, "B T V"] | tuple[Float[Tensor, "B T V"], TransformerWeights]: ...

    def forward(
        self,
        src: Integer[Tensor, "B S"],
        tgt: Integer[Tensor, "B T"],
        *,
        need_weights: bool = False,
    ) -> Float[Tensor, "B T V"] | tuple[Float[Tensor, "B T V"], TransformerWeights]:
        """Return logits (B, T, tgt_vocab); with `need_weights` `TransformerWeights` too."""
        shard_checks.check_no_memory(current_shards() is None, "Seq2SeqTransformer")
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

    @torch.no_grad()
    def start(self, src: Integer[Tensor, "B S"], capacity: int) -> StackCache:
        """Encode the source and return caches for `capacity` target tokens a sample.

        None of them has a window: every target attends to all that are before it.
        """
        shard_checks.check_no_memory(current_shards() is None, "Seq2SeqTransformer")
        checks.check_token_array("src", src, ("B", "S"), self.src_vocab)
        hidden = self._hidden(src)
        x = self._embed(self.src_embedding, src, hidden, 0)
        return self.transformer.start(
            x, capacity, src_key_padding_mask=hidden, memory_key_padding_mask=hidden
        )

    @torch.no_grad()
    def decode(
        self, tgt: Integer[Tensor, "B T"], cache: StackCache
    ) -> tuple[Float[Tensor, "B T V"], StackCache]:
        """Take new target tokens; return their logits, and the cache.

        Padding is neither stored nor counted, and its logits are 0.
        """
        self.transformer.decoder._check_depth(cache)
        checks.check_token_array("tgt", tgt, ("B", "T"), self.tgt_vocab)
        checks.check_token_batch(tgt, cache)
        checks.check_all_kept(cache)
        hidden = self._hidden(tgt)
        first = cache.lengths[:, None].to(tgt.device)
        tokens = self._embed(self.tgt_embedding, tgt, hidden, first)
        # Once for all layers: a device is waited for here and nowhere below.
        hidden = hidden.to(cache.lengths.device)
        some = hidden if not is_concrete(hidden) or hidden.any() else None
        output, cache = self.transformer.decode(tokens, cache, hidden=some)
        return zero_hidden(self._logits(output), hidden, True), cache

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.projection(x)
        checks.check_given("projection", logits, (*x.shape[:2], self.tgt_vocab))
        return logits

    def _hidden(self, tokens: Tensor) -> Tensor:
        return sequence_mask(tokens, self.padding_idx)

    def _embed(
        self, embedding: nn.Embedding, tokens: Tensor, hidden: Tensor, first: int | Tensor
    ) -> Tensor:
        """Return (B, T, E); tokens stand from position `first` on, padding left out."""
        vocab = self.src_vocab if embedding is self.src_embedding else self.tgt_vocab
        checks.check_embedding(getattr(embedding, "num_embeddings", vocab), vocab)
        check_gathered(embedding=embedding)
        x = embedding(tokens.long())
        if self.positions == "sinusoidal":
            positions = first + ((~hidden).cumsum(1) - 1).clamp(min=0)
            x = x * math.sqrt(x.shape[2]) + sinusoids(positions, x.shape[2], x.dtype)
        return self.drop(x)


def _start_embedding(embedding: nn.Embedding) -> None:
    nn.Embedding.reset_parameters(embedding)
    embedding.weight.data /= math.sqrt(embedding.embedding_dim)


def sinusoids(
    positions: Integer[Tensor, "B T"], features: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B T E"]:
    """Return the paper's positional encodings (B, T, E): sines at even features, cosines at odd.

    >>> sinusoids(torch.tensor([[0, 1]]), 2)
    tensor([[[0.0000, 1.0000],
             [0.8415, 0.5403]]])
    """
    float_dtype = torch.float32 if positions.device.type == "mps" else torch.float64
    feature = torch.arange(features, device=positions.device)
    angles = positions[..., None] * 10000.0 ** (-(feature // 2 * 2).to(float_dtype) / features)
    return torch.where(feature % 2 == 1, angles.cos(), angles.sin()).to(dtype)
