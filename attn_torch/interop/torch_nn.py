"""`torch.nn.MultiheadAttention`, computed by this package: the same calls, the same weights."""

import functools
import operator
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from .. import checks
from ..arrays import dtype_name, is_array, is_concrete
from ..attention import attention, attention_steps
from ..call import Call
from ..masks import Mask, allow, causal, hide, padding
from ..multihead import _read_masks, _set_hidden_aside
from ..numerics import mark_heads, upcast
from ..sharded import current_shards
from ..tiles import Cells

Model = TypeVar("Model", bound=nn.Module)


class MultiheadAttention(nn.MultiheadAttention):
    """torch.nn's module with this package's attention: arguments, defaults and weights are torch's.

    It can stand inside torch.nn's encoder and decoder layers; `replace` puts it there. A fully
    masked row is 0 before the last map, with weights and without, and what is hidden has no
    influence, even if it is NaN. The weights returned are those before dropout. Raises what torch's
    module raises where sizes do not fit.

    Source: "Attention Is All You Need", section 3.2.2.

    >>> attn = MultiheadAttention(32, 4)  # the sequence comes first
    >>> query, memory = torch.ones(5, 2, 32), torch.ones(7, 2, 32)
    >>> output, weights = attn(query, memory, memory)
    >>> output.shape, weights.shape
    (torch.Size([5, 2, 32]), torch.Size([2, 5, 7]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        options = (dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first)
        super().__init__(embed_dim, num_heads, *options, device, dtype)
        self.register_forward_pre_hook(_keep_off_the_fast_path)

    def forward(
        self,
        query: Float[Tensor, "..."],
        key: Float[Tensor, "..."],
        value: Float[Tensor, "..."],
        key_padding_mask: Shaped[Tensor, "..."] | None = None,
        need_weights: bool = True,
        attn_mask: Shaped[Tensor, "..."] | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."] | None]:
        """Attend from query to key and value.

        Inputs are (T, B, E), (B, T, E) with `batch_first=True`, or (T, E). A bool mask hides where
        it is True, a float mask is added to the scores: `key_padding_mask` is (B, S), or (S,) for
        inputs (T, E), `attn_mask` is (T, S) or (B*H, T, S). `is_causal` hides the keys after each
        query, beside `attn_mask` or without it. A nested tensor is taken for self-attention.

        Returns the output, shaped like the query, and the weights: (B, T, S) as the mean over
        heads, (B, H, T, S) with `average_attn_weights=False`, None with `need_weights=False`.
        `add_bias_kv` and `add_zero_attn` add a key each, and so a column to the weights. Raises
        ValueError for shapes, TypeError for kinds and dtypes.
        """
        _check_no_shards()
        told = (need_weights, attn_mask, average_attn_weights, is_causal)
        if any(isinstance(x, Tensor) and x.is_nested for x in (query, key, value)):
            _check_nested(query, key, value, key_padding_mask, attn_mask, self.batch_first)
            return self._attend_nested(query, told)
        one_sample = getattr(query, "ndim", 3) == 2
        if one_sample:
            _check_one_sample(key, value, key_padding_mask)
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        batch_first = one_sample or self.batch_first
        checks.check_inputs(query, key, value, *self._expected(), batch_first)
        if not batch_first:
            query, key, value = (x.swapaxes(0, 1) for x in (query, key, value))
        output, weights = self._attend(query, key, value, key_padding_mask, *told)
        if one_sample:
            return output[0], None if weights is None else weights[0]
        return output if batch_first else output.swapaxes(0, 1), weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        average_attn_weights: bool,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from checked inputs, batch first."""
        sizes = (query.shape[0], self.num_heads, query.shape[1], key.shape[1])
        mask, bias = _combine_masks(key_padding_mask, attn_mask, is_causal, query, sizes)
        call = Call(sizes, mask, bias, 1.0, None, None, "zero", 0, 0.0, None)
        key, value, marks = _set_hidden_aside(key, value, call)
        heads = self._project(query, key, value, marks)
        mask, bias = _allow_added_keys(mask, bias, sizes, heads[1])
        dropout = self.dropout if self.training else 0.0
        options: Any = {"mask": mask, "bias": bias, "query_offset": 0, "dropout": dropout}
        weights = None
        if need_weights:
            _, _, weights, output = attention_steps(*heads, **options)
            weights = (weights.mean(1) if average_attn_weights else weights).to(output.dtype)
        else:
            output = attention(*heads, **options)
        return self.out_proj(output.swapaxes(1, 2).flatten(2)), weights

    def _attend_nested(self, x: Tensor, told: tuple) -> tuple[Tensor, Tensor | None]:
        """Attend from a checked nested tensor to itself: padded, and nested again."""
        lengths = torch.tensor([len(sample) for sample in x.unbind()], device=x.device)
        x = torch.nested.to_padded_tensor(x, 0.0)
        hidden = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        output, weights = self.forward(x, x, x, hidden, *told)
        samples = [row[~pads] for row, pads in zip(output, hidden, strict=True)]
        return torch.nested.as_nested_tensor(samples), weights

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, marks: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return heads (B, H, T, D); of keys and values with those that the module adds."""
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = zip((query, key, value), self._weights(), biases, strict=True)
        query, key, value = (linear(*each) for each in inputs)
        split = (self.num_heads, self.head_dim)
        query, key, value = (x.unflatten(2, split).swapaxes(1, 2) for x in (query, key, value))
        key, value = mark_heads(key, value, marks)
        if self.bias_k is not None and self.bias_v is not None:
            added = (x.unflatten(2, split).swapaxes(1, 2) for x in (self.bias_k, self.bias_v))
            added = (x.expand(key.shape[0], -1, -1, -1) for x in added)
            key, value = (torch.cat(both, 2) for both in zip((key, value), added, strict=True))
        if self.add_zero_attn:
            key, value = (pad(x, (0, 0, 0, 1)) for x in (key, value))
        return query, key, value

    def _weights(self) -> tuple[Tensor, ...]:
        """Return the weights that project query, key and value."""
        if self.in_proj_weight is None:
            return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        return self.in_proj_weight.chunk(3)

    def _expected(self) -> tuple[dict[str, int], str]:
        """Return the features of query, key and value, and their dtype."""
        dims = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        return dims, dtype_name(self._weights()[0])


def replace(model: Model) -> Model:
    """Make every torch.nn.MultiheadAttention of a model one of ours, and return the model.

    It is done in place: parameters stay the same tensors, so an optimizer keeps them. Subclasses
    are left as they are, for they may compute something else. Raises ValueError where there is
    none to replace.

    >>> model = replace(nn.TransformerEncoderLayer(32, 4))
    >>> type(model.self_attn).__module__
    'attn_torch.interop.torch_nn'
    """
    modules = [x for x in model.modules() if type(x) in (nn.MultiheadAttention, MultiheadAttention)]
    if not modules:
        rule = "the model must hold a torch.nn.MultiheadAttention"
        raise ValueError(f"{rule}: got {type(model).__name__} without one")
    for module in modules:
        if type(module) is nn.MultiheadAttention:
            module.__class__ = MultiheadAttention
            module.register_forward_pre_hook(_keep_off_the_fast_path)
    return model


def _keep_off_the_fast_path(module: nn.Module, inputs: tuple) -> None:
    """Do nothing: evaluated encoder layers call no attention but one that has a hook."""


def _check_no_shards() -> None:
    if current_shards() is not None:
        rule = "this module knows no shards of sequences, leave shard_sequences first"
        raise RuntimeError(f"{rule}: got a call inside")


def _check_one_sample(key: Any, value: Any, key_padding_mask: Any) -> None:
    checks.check_array("key", key, ("S", "E"))
    checks.check_array("value", value, ("S", "E"))
    if key_padding_mask is not None:
        checks.check_array("key_padding_mask", key_padding_mask, ("S",))


def _check_nested(
    query: Any, key: Any, value: Any, key_padding_mask: Any, attn_mask: Any, batch_first: bool
) -> None:
    if not (query is key is value):
        rule = "a nested tensor must be query, key and value at once, pad it where they differ"
        raise ValueError(f"{rule}: got others beside it")
    if query.layout is not torch.strided or query.dim() != 3 or not batch_first:
        rule = "a nested tensor must be torch.strided, of samples (T, E), with batch_first=True"
        got = f"{query.layout}, {query.dim()} axes, batch_first={batch_first}"
        raise ValueError(f"{rule}: got {got}")
    for name, mask in {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}.items():
        if mask is not None:
            rule = f"{name} must be None beside a nested tensor, which says where samples end"
            raise ValueError(f"{rule}: got {checks.kind(mask)}")


def _combine_masks(
    key_padding_mask: Any,
    attn_mask: Any,
    is_causal: bool,
    query: Tensor,
    sizes: tuple[int, int, int, int],
) -> tuple[Mask | None, Tensor | None]:
    """Return what is hidden, and what is added to the scores."""
    if isinstance(attn_mask, Mask):
        rule = "attn_mask must be an array, attn_torch.MultiHeadAttention takes a Mask"
        raise TypeError(f"{rule}: got {checks.kind(attn_mask)}")
    mask, bias = _read_masks(None, attn_mask, query, sizes)
    masks = [] if mask is None else [mask]
    if bias is not None:
        hidden, bias = _split_additive(bias)
        masks.append(hide(hidden))
    if key_padding_mask is not None:
        hidden, added = key_padding_mask, None
        if is_array(hidden) and hidden.is_floating_point():
            checks.check_float_beside("key_padding_mask", hidden, query)
            hidden, added = _split_additive(hidden)
        checks.check_key_padding_mask(hidden, sizes)
        masks.append(padding(hidden=hidden))
        if added is not None:
            added = upcast(added[:, None, None])
            bias = added if bias is None else upcast(bias) + added
    if is_causal:
        if sizes[2] != sizes[3]:
            rule = "is_causal needs T = S, give an attn_mask that says which keys come later"
            raise ValueError(f"{rule}: got T = {sizes[2]} and S = {sizes[3]}")
        masks.append(causal())
    return functools.reduce(operator.and_, masks) if masks else None, bias


def _split_additive(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return where an additive mask hides, and the mask if it does anything else."""
    hidden = mask == -torch.inf
    if is_concrete(mask) and not (mask.requires_grad or torch.where(hidden, 0, mask).any()):
        return hidden, None
    return hidden, mask


def _allow_added_keys(
    mask: Mask | None, bias: Tensor | None, sizes: tuple[int, int, int, int], key: Tensor
) -> tuple[Mask | None, Tensor | None]:
    """Allow every query the keys that the module adds behind the others."""
    added = key.shape[2] - sizes[3]
    if not added:
        return mask, bias
    if mask is not None:
        allowed = mask.evaluate(Cells(sizes, device=key.device)).expand(-1, -1, *sizes[2:])
        mask = allow(pad(allowed, (0, added), value=True))
    return mask, None if bias is None else pad(bias, (0, added))
