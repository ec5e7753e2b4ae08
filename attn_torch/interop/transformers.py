"""attn_torch as an attention implementation of Hugging Face's transformers.

    from attn_torch.interop import transformers

    transformers.register()
    model.set_attn_implementation("attn_rosetta")

transformers makes a model's masks by one function and attends in each layer by another: both are
here. docs/transformers.md says what is supported, and what differs from eager and sdpa.
"""

from typing import Any

import torch
from torch import Tensor

from ..attention import attention, attention_steps
from ..masks import Mask, allow, padding
from .carried import CarriedMask

NAME = "attn_rosetta"
# What else a layer may hand over that changes the answer, and that is not done here.
REFUSED = {
    "block_indices": "blocks of keys that an indexer chose",
    "sinks": "a sink of its own for each token",
}


def register() -> None:
    """Make `attn_implementation="attn_rosetta"` work in transformers; twice is as once.

    Raises ModuleNotFoundError where transformers is not installed, RuntimeError where its mask
    functions are not those that this module knows.

    >>> register()
    >>> from transformers import AttentionInterface
    >>> AttentionInterface()["attn_rosetta"].__name__
    'attend'
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ModuleNotFoundError as error:
        rule = "install transformers for attn_torch.interop.transformers"
        raise ModuleNotFoundError(f"{rule}: got {error}", name=error.name) from error
    from .recognised import check_known

    check_known()
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, make_mask)


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor:
    """Return the mask of a model's layers: a `CarriedMask` where it has a name, else an array.

    An array too for one query, which may enter a compiled step, and under a compiler. It is never
    None, so that `attend` knows of a mask that was forgotten.

    Raises ValueError for a model that would add the mask to its scores itself.
    """
    from transformers import masking_utils as theirs

    from .recognised import Unrecognised, carry

    check_model(type(kwargs.get("config")))
    sizes = batch_size, q_length, kv_length
    what: dict[str, Any] = {
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function or theirs.causal_mask_function,
        "attention_mask": attention_mask,
        "device": device,
    }
    if q_length > 1 and not theirs.is_tracing(attention_mask):
        try:
            return carry(*sizes, **what)
        except Unrecognised:
            pass
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return theirs.sdpa_mask(*sizes, **what, use_vmap=use_vmap, **kwargs)


@torch.compiler.assume_constant_result
def check_model(config: type) -> None:
    """Refuse a model that asks for no attention function, by the class of its configuration."""
    from transformers import AutoModel

    model = AutoModel._model_mapping.get(config, None)
    model = model[0] if isinstance(model, tuple) else model
    ways = ("attention_backend", "sdpa", "flash_attn", "flex_attn")
    if model is not None and not any(getattr(model, f"_supports_{way}", False) for way in ways):
        rule = f"{NAME} is for models that ask for an attention function, use eager"
        raise ValueError(f"{rule}: got {model.__name__}")


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    indices: Tensor | None = None,
    is_causal: bool | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend in one layer: (B, H, T, D) go in, (B, T, H, D) comes out, and weights if asked for.

    Raises ValueError for a causal layer without a mask, for a mask that does not fit and for what
    a layer wants that is not done here; TypeError for a mask of integers.
    """
    for name, what in REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{NAME} takes no {name}: got {what}; use eager")
    mask, query_offset, bias = read(attention_mask, query, key)
    if attention_mask is None and query.shape[2] > 1:
        check_no_mask(module, is_causal)
    if indices is not None:
        picked = chosen(indices, key.shape[2])
        mask = picked if mask is None else mask & picked
    if position_bias is not None:
        dtype = torch.promote_types(query.dtype, torch.float32)  # 16 bits would overflow to -inf
        bias = position_bias if bias is None else bias.to(dtype) + position_bias.to(dtype)
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "scale": scaling,
        "softcap": softcap,
        "sinks": s_aux,
        "query_offset": query_offset,
        "dropout": dropout,
    }
    if output_attentions:
        steps = attention_steps(query, key, value, **options)
        return steps.output.transpose(1, 2).contiguous(), steps.weights.to(query.dtype)
    return attention(query, key, value, **options).transpose(1, 2).contiguous(), None


def read(
    attention_mask: Tensor | None, query: Tensor, key: Tensor
) -> tuple[Mask | None, int | None, Tensor | None]:
    """Return what a layer's mask is: a Mask with its offset, or a bias."""
    if attention_mask is None:
        return None, None, None
    shape, sizes = tuple(attention_mask.shape), (len(query), 1, query.shape[2], key.shape[2])
    if len(shape) != 4:
        raise ValueError(f"attention_mask must be (B, H, T, S) in a layer: got {shape}")
    if isinstance(attention_mask, CarriedMask):
        if shape != sizes:
            raise ValueError(f"attention_mask must fit its layer, {sizes}: got {shape}")
        if attention_mask.array is None:
            return attention_mask.mask, attention_mask.query_offset, None
        attention_mask = attention_mask.array
    if attention_mask.is_floating_point():
        return None, None, attention_mask
    if attention_mask.dtype != torch.bool:
        rule = "attention_mask must be bool, or floats to be added"
        raise TypeError(f"{rule}: got {attention_mask.dtype}")
    if shape[1:3] == (1, 1):
        return padding(hidden=~attention_mask[:, 0, 0].expand(len(query), -1)), None, None
    return allow(attention_mask), None, None


def check_no_mask(module: torch.nn.Module, is_causal: bool | None) -> None:
    """Refuse a layer that has no mask and does not say that it needs none."""
    is_causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if is_causal is None or is_causal:
        name = type(module).__name__
        rule = f"a causal layer needs its mask, or it would look ahead: got none for {name}"
        raise ValueError(f"{rule}; is the mask function of {NAME} registered too?")


def chosen(indices: Tensor, keys: int) -> Mask:
    """Allow each query the keys that an indexer chose for it, (B, T, n)."""
    array = indices.new_zeros((*indices.shape[:2], keys), dtype=torch.bool)
    return allow(array.scatter_(-1, indices.long(), True)[:, None])
