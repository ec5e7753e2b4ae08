"""What is registered in transformers as an attention implementation, with its mask function.

    python -m conformance run --subject hf:sdpa
    python -m conformance run --subject hf:my_package.kernels:my_name    # imported first

A layer's mask is made as a model makes it: padding is a mask of two axes, the rest of the mask and
what is causal are functions. A mask of four axes that is not boolean goes to the layer as it is.
"""
# mypy: disable-error-code="import-not-found"

from importlib import import_module
from inspect import signature

import torch
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from ..protocol import NotOffered
from .base import FunctionPeer
from .torch import Torch, seeded
from .transformers import module

OURS = "attn_rosetta"
ARGUMENTS = {"bias": "position_bias", "softcap": "softcap", "sinks": "s_aux", "dropout": "dropout",
             "weights": "output_attentions"}  # fmt: skip


class Registered(Torch, FunctionPeer):
    """An attention function; what it offers is what it has arguments for."""

    packages = ("transformers", *Torch.packages)
    further = frozenset({"window", "chunk"})
    implementation = ""

    def __init__(self) -> None:
        register(self.implementation)
        self.function = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.implementation, eager_attention_forward
        )
        taken = signature(self.function).parameters
        offered = {name for name, argument in ARGUMENTS.items() if argument in taken}
        if self.function is eager_attention_forward:
            offered.add("weights")
        self.capabilities = frozenset(
            {"attention", "scale", "grouped", "causal", "gradients", *offered}
        )

    def call(
        self, query, key, value, *, mask=None, causal=False, window=None, chunk=None,
        scale=None, seed=None, need_weights=False, **options,
    ):  # fmt: skip
        seeded(seed)
        sizes = query.shape[0], query.shape[2], key.shape[2]
        mask = self.mask(mask, causal, window, chunk, sizes, query.dtype)
        if "bias" in options:
            shape = (*query.shape[:3], key.shape[2])
            options["bias"] = torch.broadcast_to(options["bias"], shape)
        options = {ARGUMENTS[name]: value for name, value in options.items()}
        options |= {"scaling": query.shape[3] ** -0.5 if scale is None else scale}
        layer = module(query, key)
        layer.is_causal = causal or bool(window or chunk)
        output, weights = self.function(
            layer, query, key, value, mask, output_attentions=need_weights, **options
        )
        return output.transpose(1, 2), weights if need_weights else None

    def mask(self, mask, causal, window, chunk, sizes, dtype):
        """Return what a model hands its layers."""
        functions, padding = [], None
        if causal and sizes[1] != sizes[2]:
            raise NotOffered("a mask function is told where the queries start, it never guesses")
        if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
            self.tell("a mask of four axes that is not boolean goes to the layer as it is")
            return mask
        if mask is not None and mask.ndim != 4:
            padding = mask.bool()
        elif mask is not None and chunk is not None:
            padding = mask[:, 0, -1]  # the last query's keys are those that are not padding
        elif mask is not None and mask.numel() and (mask == mask[:, :1, :1]).all():
            padding = mask[:, 0, 0].expand(sizes[0], -1)
        elif mask is not None:
            functions = [self.cells(mask, sizes)]
        if padding is not None:
            self.tell("given as a padding mask of two axes")
        if window is not None:
            functions.append(sliding_window_causal_mask_function(window))
        elif chunk is not None:
            left = torch.zeros(sizes[0]).long() if padding is None else (~padding).sum(-1)
            functions.append(chunked_causal_mask_function(chunk, left))
        elif causal:
            functions.append(causal_mask_function)
        plain = functions in ([], [causal_mask_function])
        function = and_masks(*functions) if len(functions) > 1 else (
            functions[0] if functions else bidirectional_mask_function
        )  # fmt: skip
        return ALL_MASK_ATTENTION_FUNCTIONS[self.implementation](
            batch_size=sizes[0],
            q_length=sizes[1],
            kv_length=sizes[2],
            mask_function=function,
            attention_mask=padding,
            allow_is_causal_skip=plain and causal,
            allow_is_bidirectional_skip=plain and not causal,
            local_size=window or chunk,
            dtype=dtype,
            config=None,
            use_vmap=False,
            device="cpu",
        )

    def cells(self, mask, sizes):
        """Return a mask function that looks a cell up."""
        if (mask != mask[:, :1]).any():
            raise NotOffered("a mask function is one for all heads: (B, 1, T, S)")
        cells = mask[:, 0].expand(sizes)
        self.tell("by its own mask function, given one that looks the cell up")
        return lambda b, h, q, k: cells[b, q, k]


class RegisteredEager(Registered):
    """Llama's eager_attention_forward, and eager_mask."""

    implementation = "eager"


class RegisteredSdpa(Registered):
    """sdpa_attention_forward, and sdpa_mask."""

    implementation = "sdpa"


class RegisteredRosetta(Registered):
    """attn_torch, and its masks by name."""

    implementation = OURS


def register(name: str) -> None:
    """Register what is this project's own."""
    if name == OURS:
        import_module("attn_torch.interop.transformers").register()


def registered(name: str) -> type[Registered]:
    """Return the adapter of an implementation; `module:name` imports the module that registers it.

    Raises ValueError where nothing of that name is registered, or it has no mask function.
    """
    place, colon, implementation = name.rpartition(":")
    if colon:
        import_module(place)
    register(implementation)
    known = dict.fromkeys(["eager", OURS, *ALL_ATTENTION_FUNCTIONS])
    if implementation not in known:
        rule = f"hf:NAME must be registered in transformers ({', '.join(known)})"
        raise ValueError(f"{rule}: got {implementation}")
    if implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
        rule = "an attention function needs its mask function, by AttentionMaskInterface.register"
        raise ValueError(f"{rule}: got none for {implementation}")
    settings = {"implementation": implementation, "name": f"hf:{implementation}"}
    return type("Subject", (Registered,), settings)
