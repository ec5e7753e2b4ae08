"""The Transformer of the paper: layers, stacks, and both stacks together.

Names are torch.nn's, so that weights carry over. Every mask is an array in which True hides, or
whose numbers are added, or a `Mask`; a positional memory mask goes by the target's positions.
Every attention's weights can be had with `need_weights`, and every layer and stack can `decode`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from . import checks
from .cache import KVCache, StackCache, pack, restored_on_error, unpack
from .call import Call
from .layers import new_linear
from .masks import Mask
from .multihead import MultiHeadAttention

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}
Tokens = Float[Tensor, "_ _ E"]  # (B, T, E), or (T, B, E) with the sequence first
Weights = Float[Tensor, "_ _ _ _"]  # (B, H, T, S)
Padding = Mask | Bool[Tensor, "B _"] | None  # of source and target alike
AnyMask = Mask | Shaped[Tensor, "..."] | None


class TransformerWeights(NamedTuple):
    """The attention weights of a Transformer, layer by layer, each (B, H, T, S)."""

    encoder: tuple[Float[Tensor, "B H S S"], ...]
    decoder: tuple[tuple[Float[Tensor, "B H T T"], Float[Tensor, "B H T S"]], ...]


class _Layer(nn.Module):
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        checks.check_layer(dim_feedforward, activation, layer_norm_eps)
        checks.check_switches(norm_first=norm_first)
        self.d_model, self.nhead, self.dim_feedforward = d_model, nhead, dim_feedforward
        self.dropout, self.activation = dropout, activation
        self.layer_norm_eps = float(layer_norm_eps)
        self.batch_first, self.norm_first, self.bias = batch_first, norm_first, bias
        self.empty_rows = empty_rows
        self.self_attn = self._new_attention(device, dtype)
        if self.has_memory:
            self.multihead_attn = self._new_attention(device, dtype)
        self.linear1 = new_linear(d_model, dim_feedforward, bias=bias, device=device, dtype=dtype)
        self.linear2 = new_linear(dim_feedforward, d_model, bias=bias, device=device, dtype=dtype)
        self.norm1, self.norm2 = self.new_norm(), self.new_norm()
        if self.has_memory:
            self.norm3 = self.new_norm()
        self.drop = nn.Dropout(dropout)

    def _new_attention(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> MultiHeadAttention:
        return MultiHeadAttention(
            self.d_model,
            self.nhead,
            bias=self.bias,
            dropout=self.dropout,
            batch_first=self.batch_first,
            empty_rows=self.empty_rows,
            device=device,
            dtype=dtype,
        )

    def new_norm(self) -> nn.LayerNorm:
        """Return one more norm like the layer's own."""
        weight, eps = self.linear1.weight, self.layer_norm_eps
        return nn.LayerNorm(
            self.d_model, eps, bias=self.bias, device=weight.device, dtype=weight.dtype
        )

    def _check(self, x: Tensor) -> None:
        """Refuse what a norm that comes first would let pass, or refuse in other words."""
        if self.norm_first:
            self.self_attn._check_inputs(x, None, None)

    def _self_attention(
        self, x: Tensor, mask: AnyMask, padding: Padding, need_weights: bool
    ) -> tuple[Tensor, Any]:
        return self.self_attn(
            x,
            key_padding_mask=padding,
            attn_mask=mask,
            need_weights=need_weights,
            average_weights=False,
        )

    def _feed_forward(self, x: Tensor) -> Tensor:
        y = self.linear2(self.drop(ACTIVATIONS[self.activation](self.linear1(x))))
        checks.check_given("linear2", y, x.shape)
        return y


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward net, each with a residual and a layer norm.

    The norm comes after the residual, or before the sublayer with `norm_first`. Raises as
    `MultiHeadAttention` does, and ValueError for an unknown `activation`.

    Source: "Attention Is All You Need", section 3.1.

    >>> from attn_torch import padding
    >>> layer = TransformerEncoderLayer(16, 2, 64).eval()
    >>> x = torch.randn(5, 10, 16)
    >>> output, weights = layer(x, src_key_padding_mask=padding([5, 4, 3, 2, 3]), need_weights=True)
    >>> output.shape, weights.shape
    (torch.Size([5, 10, 16]), torch.Size([5, 2, 10, 10]))
    """

    @overload
    def forward(
        self,
        src: Tokens,
        src_mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[False] = ...,
    ) -> Tokens: ...

    @overload
    def forward(
        self,
        src: Tokens,
        src_mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[True],
    ) -> tuple[Tokens, Weights]: ...

    @overload
    def forward(
        self,
        src: Tokens,
        src_mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        *,
        need_weights: bool = ...,
    ) -> Tokens | tuple[Tokens, Weights]: ...

    def forward(
        self,
        src: Tokens,
        src_mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Tokens | tuple[Tokens, Weights]:
        """Return the output, shaped like `src`; with `need_weights` (B, H, S, S) weights too."""
        self._check(src)
        x, masks = src, (src_mask, src_key_padding_mask)
        if self.norm_first:
            y, weights = self._self_attention(self.norm1(x), *masks, need_weights)
            x = x + self.drop(y)
            x = x + self.drop(self._feed_forward(self.norm2(x)))
        else:
            y, weights = self._self_attention(x, *masks, need_weights)
            x = self.norm1(x + self.drop(y))
            x = self.norm2(x + self.drop(self._feed_forward(x)))
        return (x, weights) if need_weights else x

    @torch.no_grad()
    def decode(
        self,
        src: Tokens,
        cache: KVCache,
        *,
        hidden: Bool[Tensor, "B T"] | None = None,
        src_mask: Mask | None = None,
    ) -> tuple[Tokens, KVCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        counts = self.self_attn._check_decode(src, cache, hidden, src_mask)
        packed = pack(src, hidden, self.batch_first)
        with restored_on_error(cache):
            x, written = self._decode_packed(packed, cache, counts, src_mask)
            return unpack(x, hidden, self.batch_first), written

    def _decode_packed(
        self, x: Tensor, cache: KVCache, counts: Tensor | None, mask: Mask | None
    ) -> tuple[Tensor, KVCache]:
        """Decode as `MultiHeadAttention._decode_packed` does."""
        if self.norm_first:
            y, cache = self.self_attn._decode_packed(self.norm1(x), cache, counts, mask)
            x = x + self.drop(y)
            x = x + self.drop(self._feed_forward(self.norm2(x)))
        else:
            y, cache = self.self_attn._decode_packed(x, cache, counts, mask)
            x = self.norm1(x + self.drop(y))
            x = self.norm2(x + self.drop(self._feed_forward(x)))
        return x, cache


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to a memory, and a feed-forward net.

    Source: "Attention Is All You Need", section 3.1.

    >>> from attn_torch import causal
    >>> layer = TransformerDecoderLayer(16, 2, 64).eval()
    >>> target, memory = torch.ones(5, 20, 16), torch.ones(5, 10, 16)
    >>> output, (to_target, to_memory) = layer(target, memory, causal(), need_weights=True)
    >>> output.shape, to_target.shape, to_memory.shape
    (torch.Size([5, 20, 16]), torch.Size([5, 2, 20, 20]), torch.Size([5, 2, 20, 10]))
    """

    has_memory = True

    @overload
    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[False] = ...,
    ) -> Tokens: ...

    @overload
    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[True],
    ) -> tuple[Tokens, tuple[Weights, Weights]]: ...

    @overload
    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: bool = ...,
    ) -> Tokens | tuple[Tokens, tuple[Weights, Weights]]: ...

    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = None,
        memory_mask: AnyMask = None,
        tgt_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Tokens | tuple[Tokens, tuple[Weights, Weights]]:
        """Return the output, shaped like `tgt`; with `need_weights` a pair of weights too.

        They are those of the self-attention (B, H, T, T) and of the memory's (B, H, T, S).
        """
        self._check(tgt)
        x, masks = tgt, (tgt_mask, tgt_key_padding_mask)
        memory_masks = (memory_mask, memory_key_padding_mask)
        if self.norm_first:
            y, self_weights = self._self_attention(self.norm1(x), *masks, need_weights)
            x = x + self.drop(y)
            y, weights = self._cross_attention(self.norm2(x), memory, *memory_masks, need_weights)
            x = x + self.drop(y)
            x = x + self.drop(self._feed_forward(self.norm3(x)))
        else:
            y, self_weights = self._self_attention(x, *masks, need_weights)
            x = self.norm1(x + self.drop(y))
            y, weights = self._cross_attention(x, memory, *memory_masks, need_weights)
            x = self.norm2(x + self.drop(y))
            x = self.norm3(x + self.drop(self._feed_forward(x)))
        return (x, (self_weights, weights)) if need_weights else x

    @torch.no_grad()
    def decode(
        self,
        tgt: Tokens,
        cache: KVCache,
        memory: KVCache,
        *,
        hidden: Bool[Tensor, "B T"] | None = None,
        tgt_mask: Mask | None = None,
        memory_mask: AnyMask = None,
        memory_key_padding_mask: Padding = None,
    ) -> tuple[Tokens, KVCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache.

        `memory` is `layer.multihead_attn.project(memory)`.
        """
        masks = (hidden, tgt_mask, memory_mask, memory_key_padding_mask)
        counts, call = self._check_decode(tgt, cache, memory, *masks)
        packed = pack(tgt, hidden, self.batch_first)
        with restored_on_error(cache):
            x, written = self._decode_packed(packed, cache, counts, tgt_mask, memory, call)
            return unpack(x, hidden, self.batch_first), written

    def _check_decode(
        self,
        tgt: Tensor,
        cache: KVCache,
        memory: KVCache,
        hidden: Tensor | None,
        tgt_mask: Mask | None,
        memory_mask: AnyMask,
        memory_key_padding_mask: Padding,
    ) -> tuple[Tensor | None, Call]:
        """Refuse a wrong call before anything is written; return counts and the memory's call."""
        counts = self.self_attn._check_decode(tgt, cache, hidden, tgt_mask)
        checks.check_is_cache(memory, KVCache)
        if hidden is not None:
            checks.check_movable("memory_mask", memory_mask)
            if isinstance(memory_key_padding_mask, Mask):
                checks.check_movable("memory_key_padding_mask", memory_key_padding_mask)
        attn = self.multihead_attn
        query, keys, _ = attn._check_inputs(tgt, memory, None)
        masks = (memory_key_padding_mask, memory_mask)
        return counts, attn._check_masks(query, keys, *masks, cache.lengths)

    def _decode_packed(
        self,
        x: Tensor,
        cache: KVCache,
        counts: Tensor | None,
        mask: Mask | None,
        memory: KVCache,
        call: Call,
    ) -> tuple[Tensor, KVCache]:
        """Decode as `MultiHeadAttention._decode_packed` does; `call` is that of the memory."""
        if self.norm_first:
            y, cache = self.self_attn._decode_packed(self.norm1(x), cache, counts, mask)
            x = x + self.drop(y)
            x = x + self.drop(self.multihead_attn._attend_cached(self.norm2(x), memory, call))
            x = x + self.drop(self._feed_forward(self.norm3(x)))
        else:
            y, cache = self.self_attn._decode_packed(x, cache, counts, mask)
            x = self.norm1(x + self.drop(y))
            x = self.norm2(x + self.drop(self.multihead_attn._attend_cached(x, memory, call)))
            x = self.norm3(x + self.drop(self._feed_forward(x)))
        return x, cache

    def _cross_attention(
        self, x: Tensor, memory: Tensor, mask: AnyMask, padding: Padding, need_weights: bool
    ) -> tuple[Tensor, Any]:
        return self.multihead_attn(
            x,
            memory,
            key_padding_mask=padding,
            attn_mask=mask,
            need_weights=need_weights,
            average_weights=False,
            query_offset=0,
        )


class _Stack(nn.Module):
    """Layers of one class, one after the other, and a last norm."""

    layer_class: Any

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        norm: bool = False,
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
        checks.check_count("num_layers", num_layers, 1)
        checks.check_switches(norm=norm)
        layers = [
            self.layer_class(
                d_model,
                nhead,
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
            for _ in range(num_layers)
        ]
        self.layers: Any = nn.ModuleList(layers)  # whose items have no type
        self.norm = layers[0].new_norm() if norm else None

    def _run(self, x: Tensor, inputs: tuple, need_weights: bool) -> Any:
        """Run all layers, each with the same further inputs; collect their weights where needed."""
        weights = []
        for layer in self.layers:
            x = layer(x, *inputs, need_weights=need_weights)
            if need_weights:
                x, layer_weights = x
                weights.append(layer_weights)
        return (self._last_norm(x), tuple(weights)) if need_weights else self._last_norm(x)

    def _last_norm(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _new_caches(
        self, batch_size: int, capacity: int | None, window: int | None
    ) -> tuple[KVCache, ...]:
        attentions = [layer.self_attn for layer in self.layers]
        return tuple([attn.new_cache(batch_size, capacity, window=window) for attn in attentions])

    def _check_depth(self, cache: StackCache) -> None:
        checks.check_is_cache(cache, StackCache)
        memories = len(self.layers) if self.layer_class.has_memory else 0
        checks.check_depth(cache, len(self.layers), memories)
        for part in (*cache.layers, *cache.memory):
            checks.check_is_cache(part, KVCache)


class TransformerEncoder(_Stack):
    """A stack of encoder layers, and a last norm if `norm`.

    Takes the settings of `TransformerEncoderLayer`. With `decode` it is a language model's body.

    Source: "Attention Is All You Need", section 3.1.

    >>> encoder = TransformerEncoder(3, 16, 2, 64, norm=True).eval()
    >>> output, weights = encoder(torch.ones(5, 10, 16), need_weights=True)
    >>> output.shape, len(weights)
    (torch.Size([5, 10, 16]), 3)
    """

    layer_class = TransformerEncoderLayer

    @overload
    def forward(
        self,
        src: Tokens,
        mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[False] = ...,
    ) -> Tokens: ...

    @overload
    def forward(
        self,
        src: Tokens,
        mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[True],
    ) -> tuple[Tokens, tuple[Weights, ...]]: ...

    @overload
    def forward(
        self,
        src: Tokens,
        mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        *,
        need_weights: bool = ...,
    ) -> Tokens | tuple[Tokens, tuple[Weights, ...]]: ...

    def forward(
        self,
        src: Tokens,
        mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Tokens | tuple[Tokens, tuple[Weights, ...]]:
        """Return the output, shaped like `src`; with `need_weights` each layer's weights too."""
        return self._run(src, (mask, src_key_padding_mask), need_weights)

    def start(
        self, batch_size: int, capacity: int | None = None, *, window: int | None = None
    ) -> StackCache:
        """Return empty caches for `decode`, of `capacity` positions a sample, or of a window."""
        return StackCache(self._new_caches(batch_size, capacity, window))

    @torch.no_grad()
    def decode(
        self,
        src: Tokens,
        cache: StackCache,
        *,
        hidden: Bool[Tensor, "B T"] | None = None,
        mask: Mask | None = None,
    ) -> tuple[Tokens, StackCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        self._check_depth(cache)
        pairs = list(zip(self.layers, cache.layers, strict=True))  # all, before the first writes
        counts = [layer.self_attn._check_decode(src, part, hidden, mask) for layer, part in pairs]
        batch_first = self.layers[0].batch_first
        x = pack(src, hidden, batch_first)
        with restored_on_error(*cache.layers):
            written = []
            for (layer, layer_cache), count in zip(pairs, counts, strict=True):
                x, layer_cache = layer._decode_packed(x, layer_cache, count, mask)
                written.append(layer_cache)
            output = unpack(self._last_norm(x), hidden, batch_first)
            return output, cache.with_layers(written)


class TransformerDecoder(_Stack):
    """A stack of decoder layers, and a last norm if `norm`.

    Takes the settings of `TransformerDecoderLayer`.

    Source: "Attention Is All You Need", section 3.1.

    >>> decoder = TransformerDecoder(3, 16, 2, 64).eval()
    >>> memory = torch.ones(5, 10, 16)
    >>> cache = decoder.start(memory, capacity=20)  # the memory is projected here, once a layer
    >>> output, cache = decoder.decode(torch.ones(5, 1, 16), cache)
    >>> output.shape, cache.lengths
    (torch.Size([5, 1, 16]), tensor([1, 1, 1, 1, 1]))
    """

    layer_class = TransformerDecoderLayer

    @overload
    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[False] = ...,
    ) -> Tokens: ...

    @overload
    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[True],
    ) -> tuple[Tokens, tuple[tuple[Weights, Weights], ...]]: ...

    @overload
    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: bool = ...,
    ) -> Tokens | tuple[Tokens, tuple[tuple[Weights, Weights], ...]]: ...

    def forward(
        self,
        tgt: Tokens,
        memory: Tokens,
        tgt_mask: AnyMask = None,
        memory_mask: AnyMask = None,
        tgt_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Tokens | tuple[Tokens, tuple[tuple[Weights, Weights], ...]]:
        """Return the output, shaped like `tgt`; with `need_weights` each layer's pair too."""
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return self._run(tgt, (memory, *masks), need_weights)

    @torch.no_grad()
    def start(
        self,
        memory: Tokens,
        capacity: int | None = None,
        *,
        window: int | None = None,
        memory_key_padding_mask: Padding = None,
    ) -> StackCache:
        """Return caches for `decode`: the memory's, and empty ones, as `TransformerEncoder.start`.

        A window is one of targets: each attends to the whole memory.
        """
        projected = tuple(layer.multihead_attn.project(memory) for layer in self.layers)
        batch, keys = projected[0].key.shape[0], projected[0].capacity
        if isinstance(memory_key_padding_mask, Mask):
            hidden = memory_key_padding_mask.hidden(1, keys, query_offset=0, batch=batch)
            memory_key_padding_mask = torch.broadcast_to(hidden[:, 0, 0], (batch, keys))
        elif memory_key_padding_mask is not None:
            checks.check_key_padding_mask(memory_key_padding_mask, (batch, 1, 1, keys))
        if memory_key_padding_mask is not None:  # moved once, not at every step
            device = projected[0].key.device
            memory_key_padding_mask = memory_key_padding_mask.to(device, copy=True)
        layers = self._new_caches(batch, capacity, window)
        return StackCache(layers, projected, memory_key_padding_mask)

    @torch.no_grad()
    def decode(
        self,
        tgt: Tokens,
        cache: StackCache,
        *,
        hidden: Bool[Tensor, "B T"] | None = None,
        tgt_mask: Mask | None = None,
        memory_mask: AnyMask = None,
    ) -> tuple[Tokens, StackCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        self._check_depth(cache)
        masks = (hidden, tgt_mask, memory_mask, cache.memory_key_padding_mask)
        triples = list(zip(self.layers, cache.layers, cache.memory, strict=True))
        checked = [layer._check_decode(tgt, *caches, *masks) for layer, *caches in triples]
        batch_first = self.layers[0].batch_first
        x = pack(tgt, hidden, batch_first)
        with restored_on_error(*cache.layers):
            written = []
            for (layer, layer_cache, memory), (count, call) in zip(triples, checked, strict=True):
                x, layer_cache = layer._decode_packed(x, layer_cache, count, tgt_mask, memory, call)
                written.append(layer_cache)
            output = unpack(self._last_norm(x), hidden, batch_first)
            return output, cache.with_layers(written)


class Transformer(nn.Module):
    """Encoder and decoder stack, each with a last norm.

    Takes the settings of the layers. Masks have torch.nn.Transformer's names; none is implied.

    Source: "Attention Is All You Need", section 3.1.

    >>> from attn_torch import causal
    >>> model = Transformer(16, 2, 2, 2, 64).eval()
    >>> src, tgt = torch.ones(5, 10, 16), torch.ones(5, 7, 16)
    >>> output, weights = model(src, tgt, tgt_mask=causal(), need_weights=True)
    >>> output.shape, weights.encoder[0].shape, weights.decoder[1][1].shape
    (torch.Size([5, 7, 16]), torch.Size([5, 2, 10, 10]), torch.Size([5, 2, 7, 10]))
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
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

        def new_stack(stack_class: Any, num_layers: int) -> Any:
            return stack_class(
                num_layers,
                d_model,
                nhead,
                dim_feedforward,
                dropout,
                norm=True,
                activation=activation,
                layer_norm_eps=layer_norm_eps,
                batch_first=batch_first,
                norm_first=norm_first,
                bias=bias,
                empty_rows=empty_rows,
                device=device,
                dtype=dtype,
            )

        self.encoder: TransformerEncoder = new_stack(TransformerEncoder, num_encoder_layers)
        self.decoder: TransformerDecoder = new_stack(TransformerDecoder, num_decoder_layers)

    @overload
    def forward(
        self,
        src: Tokens,
        tgt: Tokens,
        src_mask: AnyMask = ...,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[False] = ...,
    ) -> Tokens: ...

    @overload
    def forward(
        self,
        src: Tokens,
        tgt: Tokens,
        src_mask: AnyMask = ...,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: Literal[True],
    ) -> tuple[Tokens, TransformerWeights]: ...

    @overload
    def forward(
        self,
        src: Tokens,
        tgt: Tokens,
        src_mask: AnyMask = ...,
        tgt_mask: AnyMask = ...,
        memory_mask: AnyMask = ...,
        src_key_padding_mask: Padding = ...,
        tgt_key_padding_mask: Padding = ...,
        memory_key_padding_mask: Padding = ...,
        *,
        need_weights: bool = ...,
    ) -> Tokens | tuple[Tokens, TransformerWeights]: ...

    def forward(
        self,
        src: Tokens,
        tgt: Tokens,
        src_mask: AnyMask = None,
        tgt_mask: AnyMask = None,
        memory_mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        tgt_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
        *,
        need_weights: bool = False,
    ) -> Tokens | tuple[Tokens, TransformerWeights]:
        """Return the output, shaped like `tgt`; with `need_weights` `TransformerWeights` too."""
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        if not need_weights:
            return self.decoder(tgt, self.encoder(src, src_mask, src_key_padding_mask), *masks)
        memory, encoder = self.encoder(src, src_mask, src_key_padding_mask, need_weights=True)
        output, decoder = self.decoder(tgt, memory, *masks, need_weights=True)
        return output, TransformerWeights(encoder, decoder)

    @torch.no_grad()
    def start(
        self,
        src: Tokens,
        capacity: int | None = None,
        *,
        window: int | None = None,
        src_mask: AnyMask = None,
        src_key_padding_mask: Padding = None,
        memory_key_padding_mask: Padding = None,
    ) -> StackCache:
        """Encode the source and return the decoder's caches, as `TransformerDecoder.start` does."""
        memory = self.encoder(src, src_mask, src_key_padding_mask)
        hidden = memory_key_padding_mask
        return self.decoder.start(memory, capacity, window=window, memory_key_padding_mask=hidden)

    @torch.no_grad()
    def decode(
        self,
        tgt: Tokens,
        cache: StackCache,
        *,
        hidden: Bool[Tensor, "B T"] | None = None,
        tgt_mask: Mask | None = None,
        memory_mask: AnyMask = None,
    ) -> tuple[Tokens, StackCache]:
        """Take new tokens, as `MultiHeadAttention.decode` does; return output and cache."""
        return self.decoder.decode(
            tgt, cache, hidden=hidden, tgt_mask=tgt_mask, memory_mask=memory_mask
        )
