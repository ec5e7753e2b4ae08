"""Masked multi-head attention in JAX; the same names and rules as attn_numpy and attn_torch."""

from .attention import AttentionSteps, attention, attention_steps
from .draw import draw_weights
from .masks import (
    Mask,
    allow,
    causal,
    hide,
    look_ahead_mask,
    padding,
    predicate,
    prefix,
    segments,
    sequence_mask,
    sliding_window,
)
from .multihead import MultiHeadAttention

__all__ = [
    "AttentionSteps",
    "Mask",
    "MultiHeadAttention",
    "allow",
    "attention",
    "attention_steps",
    "causal",
    "draw_weights",
    "hide",
    "look_ahead_mask",
    "padding",
    "predicate",
    "prefix",
    "segments",
    "sequence_mask",
    "sliding_window",
]
