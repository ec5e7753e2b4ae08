"""torch.nn.MultiheadAttention in training and in evaluation, with its weights and without.

A variant stays in its mode, whatever mode is asked for: dropout is offered in training only. In
evaluation the layer has two paths, which are two peers. The fast one takes self-attention alone,
so attention is asked of it as such, and what it does not take it does not offer. `is_causal` is a
hint that wants a mask beside it, not a causal mask: it is handed on, and not declared.
"""

from typing import ClassVar

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import linear

from ..protocol import NotOffered
from . import heads
from .base import ModulePeer
from .torch import Torch, seeded

FAST = "fast path"


class Train(Torch, ModulePeer):
    """In training, weights left out."""

    mask_polarity = "hide"
    mask_argument = "attn_mask"
    capabilities = frozenset(
        {"attention", "multihead", "attn_mask", "parameters", "widths", "sequence_first"}
        | {"dropout", "gradients"}
    )
    training = True
    three_tensors = False
    paths: ClassVar = {"torch._native_multi_head_attention": FAST}
    otherwise = "slow path"

    def module(self, config: dict, dtype=torch.float32) -> torch.nn.MultiheadAttention:
        settings = {"batch_first": True} | config
        return torch.nn.MultiheadAttention(**settings, dtype=dtype).train(self.training)

    def parameters(self, config):
        """Return a new module's parameters, what is packed taken apart."""
        found: dict[str, np.ndarray] = {}
        for name, array in self.module(config).named_parameters():
            if name.startswith("in_proj"):
                parts = zip("qkv", array.chunk(3), strict=True)
                found |= {f"{part}_proj.{name[8:]}": self.numpy(x) for part, x in parts}
            else:
                found[name.replace("_proj_", "_proj.")] = self.numpy(array)
        return found

    def call(
        self, config, parameters, query, key, value, *, key_padding_mask=None, attn_mask=None,
        need_weights=False, causal=False, training=False, seed=None,
    ):  # fmt: skip
        if config.get("dropout") and training != self.training:
            raise NotOffered(f"this peer stays in {'training' if self.training else 'evaluation'}")
        seeded(seed)
        if attn_mask is not None and attn_mask.ndim == 4:
            attn_mask = self.rank3(config, query, key, attn_mask)
        options = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
        options |= {"need_weights": need_weights, "is_causal": causal}
        options["average_attn_weights"] = False
        attn, inputs = self.module(config, query.dtype), (query, key, value)
        if self.three_tensors:  # one that is given three times would be self-attention
            inputs = tuple(x.view_as(x) for x in inputs)
        return functional_call(attn, packed(parameters), inputs, options)

    def rank3(self, config, query, key, attn_mask):
        """Return (B * H, T, S), sample-major."""
        batch_first = config.get("batch_first", True)
        B, T = query.shape[:2] if batch_first else query.shape[1::-1]
        sizes = (B, config["num_heads"], T, key.shape[1 if batch_first else 0])
        made = attn_mask.expand(sizes).reshape(sizes[0] * sizes[1], *sizes[2:])
        shapes = f"{tuple(attn_mask.shape)} made {tuple(made.shape)}"
        self.tell(f"{shapes}: the layer takes no more than three axes")
        return made


class TrainWeights(Train):
    """In training, with its weights."""

    capabilities = Train.capabilities | {"weights"}

    def attention(self, query, key, value, **options):
        return self.weights(query, key, value, **options)[0]

    def multihead_gradients(self, *inputs, **options):
        return super().multihead_gradients(*inputs, need_weights=True, **options)


class Eval(Train):
    """In evaluation, weights left out: three tensors, as in cross-attention, so the slow path."""

    capabilities = Train.capabilities - {"dropout", "gradients"}
    training = False
    three_tensors = True


class EvalWeights(Eval):
    """The same with its weights."""

    capabilities = Eval.capabilities | {"weights"}
    attention = TrainWeights.attention


class Fast(Train):
    """In evaluation under no_grad, weights left out: what the fast path takes."""

    capabilities = Eval.capabilities
    training = False

    def as_module(self, query, key, value):
        if not heads.Packed.possible(query, key, value):
            raise NotOffered("the fast path takes self-attention alone")
        asked = heads.Packed(query, key, value)
        if not (np.isfinite(key).all() and np.isfinite(value).all()):
            self.check_overflow(asked)
        return asked

    def check_overflow(self, asked: heads.Packed) -> None:
        """Raise NotOffered unless the projections make NaN and inf where they are wanted."""
        weights = packed(self.converted(asked.parameters))["in_proj_weight"]
        made = linear(self.array(asked.x), weights).chunk(3, -1)
        for wanted, projected in zip(asked.fitted.inputs.values(), made, strict=True):
            got = asked.split(self.numpy(projected))[..., : wanted.shape[3]]
            if not np.array_equal(
                np.where(np.isfinite(wanted), 0, wanted),
                np.where(np.isfinite(got), 0, got),
                equal_nan=True,
            ):
                raise NotOffered("finite tokens do not become such keys and values here")

    def multihead(self, *inputs, **options):
        self.path = ""
        try:
            found = super().multihead(*inputs, **options)
        except Exception as error:
            if self.path == FAST:
                raise
            raise NotOffered("the fast path does not take this call") from error
        if self.path != FAST:
            raise NotOffered("the fast path does not take this call")
        return found


class FastWeights(Fast):
    """The same with its weights."""

    capabilities = Fast.capabilities | {"weights"}
    attention = TrainWeights.attention


def packed(parameters: dict) -> dict:
    """Return parameters by torch's names: one matrix for q, k and v where their widths are one."""
    weights = [parameters[f"{name}_proj.weight"] for name in "qkv"]
    if len({weight.shape for weight in weights}) == 1:
        found = {"in_proj_weight": torch.cat(weights)}
    else:
        found = {f"{name}_proj_weight": x for name, x in zip("qkv", weights, strict=True)}
    if "q_proj.bias" in parameters:
        found["in_proj_bias"] = torch.cat([parameters[f"{name}_proj.bias"] for name in "qkv"])
    return found | {n: x for n, x in parameters.items() if n.startswith("out_proj")}
