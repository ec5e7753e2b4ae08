"""From tokens to tokens: embeddings and positions, a Transformer, a projection to a vocabulary."""

import math
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from . import checks
from .cache import StackCache
from .layers import new_linear
from .masks import causal, sequence_mask
from .transformer import Transformer


class Seq2SeqTransformer(nn.Module):
    """A Transformer over tokens: padding is hidden, and the target sees nothing later.

    With `positions` "sinusoidal" an embedding is multiplied by sqrt(d_model) and sinusoids are
    added; with "none" it stands as it is. Positions count tokens and leave out padding, so a
    padded batch gives what its samples give alone, whichever side the padding is on. There is no
    look-ahead mask over the memory: every target sees the whole source. Takes `Transformer`'s
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ):
        super().__init__()
        checks.check_seq2seq(src_vocab, tgt_vocab, padding_idx, positions, options)
        shared: dict[str, Any] = {"device": device, "dtype": dtype}
        self.src_vocab, self.tgt_vocab = src_vocab, tgt_vocab
        self.padding_idx, self.positions = padding_idx, positions
        self.transformer = Transformer(**options, **shared)
        layer: Any = self.transformer.encoder.layers[0]
        width, padded = layer.d_model, shared | {"padding_idx": padding_idx}
        self.src_embedding = nn.Embedding(src_vocab, width, **padded)
        self.tgt_embedding = nn.Embedding(tgt_vocab, width, **padded)
        self.projection = new_linear(width, tgt_vocab, **shared)
        self.drop = nn.Dropout(layer.dropout)
        if positions == "sinusoidal":  # so that it starts at the size of the sinusoids
            for embedding in (self.src_embedding, self.tgt_embedding):
                embedding.weight.data /= math.sqrt(width)

    def forward(
        self,
        src: Integer[Tensor, "B S"],
        tgt: Integer[Tensor, "B T"],
        *,
        need_weights: bool = False,
    ) -> Any:
        """Return logits (B, T, tgt_vocab); with `need_weights` `TransformerWeights` too."""
        checks.check_token_pair(src, tgt, self.src_vocab, self.tgt_vocab)
        src_hidden, tgt_hidden = self._hidden(src), self._hidden(tgt)
        result = self.transformer(
            self._embed(self.src_embedding, src, src_hidden, 0),
            self._embed(self.tgt_embedding, tgt, tgt_hidden, 0),
            tgt_mask=causal(),
            src_key_padding_mask=src_hidden,
            tgt_key_padding_mask=tgt_hidden,
            memory_key_padding_mask=src_hidden,
            need_weights=need_weights,
        )
        output, weights = result if need_weights else (result, None)
        logits = self.projection(output)
        return (logits, weights) if need_weights else logits

    @torch.no_grad()
    def start(self, src: Integer[Tensor, "B S"], capacity: int) -> StackCache:
        """Encode the source and return caches for `capacity` target tokens a sample."""
        checks.check_token_array("src", src, ("B", "S"), self.src_vocab)
        hidden = self._hidden(src)
        masks = {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden}
        return self.transformer.start(
            self._embed(self.src_embedding, src, hidden, 0), capacity, **masks
        )

    @torch.no_grad()
    def decode(
        self, tgt: Integer[Tensor, "B T"], cache: StackCache
    ) -> tuple[Float[Tensor, "B T V"], StackCache]:
        """Take new target tokens; return their logits, and the cache. Padding is left out."""
        checks.check_is_cache(cache, StackCache)
        checks.check_token_array("tgt", tgt, ("B", "T"), self.tgt_vocab)
        checks.check_token_batch(tgt, cache)
        hidden = self._hidden(tgt)
        first = cache.lengths[:, None].to(tgt.device)
        tokens = self._embed(self.tgt_embedding, tgt, hidden, first)
        hidden = hidden.cpu()  # once for all layers: a device is waited for here and nowhere below
        hidden = hidden if hidden.any() else None
        output, cache = self.transformer.decode(tokens, cache, hidden=hidden)
        return self.projection(output), cache

    def _hidden(self, tokens):
        return sequence_mask(tokens, self.padding_idx)

    def _embed(self, embedding: nn.Embedding, tokens, hidden, first):
        """Return (B, T, E); tokens stand from position `first` on, padding left out."""
        x = embedding(tokens.long())
        if self.positions == "sinusoidal":
            positions = first + ((~hidden).cumsum(1) - 1).clamp(min=0)
            x = x * math.sqrt(x.shape[2]) + sinusoids(positions, x.shape[2], x.dtype)
        return self.drop(x)


def sinusoids(positions: Integer[Tensor, "B T"], features: int, dtype=torch.float32):
    """Return the paper's positional encodings (B, T, E): sines at even features, cosines at odd.

    >>> sinusoids(torch.tensor([[0, 1]]), 2)
    tensor([[[0.0000, 1.0000],
             [0.8415, 0.5403]]])
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    feature = torch.arange(features, device=positions.device)
    angles = positions[..., None] * 10000.0 ** (-(feature // 2 * 2).to(wide) / features)
    return torch.where(feature % 2 == 1, angles.cos(), angles.sin()).to(dtype)
