"""Masked multi-head attention in JAX; the same names and rules as attn_numpy and attn_torch."""

from .attention import AttentionSteps, attention, attention_steps
from .cache import KVCache, StackCache
from .decoding import greedy_decode
from .draw import draw_weights
from .files import load, save
from .masks import (
    Mask,
    allow,
    causal,
    chunked,
    hide,
    look_ahead_mask,
    packed,
    padding,
    predicate,
    prefix,
    segments,
    sequence_mask,
    sliding_window,
)
from .multihead import MultiHeadAttention
from .partial import Partial, attention_part, finish, merge
from .rotary import QKNorm, rotary
from .rows import contiguous, planned, zigzag
from .seq2seq import Seq2SeqTransformer
from .sharded import shard_sequences, sharded_attention
from .transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    TransformerWeights,
)
from .weights import export_weights, import_weights
from .window import WindowCache

__all__ = [
    "AttentionSteps",
    "KVCache",
    "Mask",
    "MultiHeadAttention",
    "Partial",
    "QKNorm",
    "Seq2SeqTransformer",
    "StackCache",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "TransformerWeights",
    "WindowCache",
    "allow",
    "attention",
    "attention_part",
    "attention_steps",
    "causal",
    "chunked",
    "contiguous",
    "draw_weights",
    "export_weights",
    "finish",
    "greedy_decode",
    "hide",
    "import_weights",
    "load",
    "look_ahead_mask",
    "merge",
    "packed",
    "padding",
    "planned",
    "predicate",
    "prefix",
    "rotary",
    "save",
    "segments",
    "sequence_mask",
    "shard_sequences",
    "sharded_attention",
    "sliding_window",
    "zigzag",
]
