"""Weight layouts: how torch.nn, flax.nnx and transformers name and lay out an attention's weights.

A writer turns our entries into those of the layout, a reader turns them back. All three backends
have this file byte for byte.
"""

from typing import Any

from .arrays import concatenate, split
from .multihead import MultiHeadAttention

Weights = dict[str, Any]  # arrays by name


def _same(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    return weights


def _to_torch(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    weights = dict(weights)
    names = [f"{prefix}{name}" for name in ("q_proj", "k_proj", "v_proj")]
    matrices = [weights.pop(f"{name}.weight") for name in names]
    if attn.embed_dim == attn.kdim == attn.vdim:
        weights[f"{prefix}in_proj_weight"] = concatenate(matrices)
    else:
        weights |= {f"{name}_weight": matrix for name, matrix in zip(names, matrices, strict=True)}
    if attn.bias:
        biases = [weights.pop(f"{name}.bias") for name in names]
        weights[f"{prefix}in_proj_bias"] = concatenate(biases)
    return weights


def _from_torch(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    weights = dict(weights)
    names = [f"{prefix}{name}" for name in ("q_proj", "k_proj", "v_proj")]
    if attn.embed_dim == attn.kdim == attn.vdim:
        matrices = split(weights.pop(f"{prefix}in_proj_weight"), 3)
    else:
        matrices = [weights.pop(f"{name}_weight") for name in names]
    weights |= {f"{name}.weight": matrix for name, matrix in zip(names, matrices, strict=True)}
    if attn.bias:
        biases = split(weights.pop(f"{prefix}in_proj_bias"), 3)
        weights |= {f"{name}.bias": bias for name, bias in zip(names, biases, strict=True)}
    return weights


NNX = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


def _to_nnx(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    written = {}
    for ours, theirs in NNX.items():
        kernel = weights[f"{ours}.weight"].T
        written[f"{theirs}.kernel"] = kernel.reshape(kernel.shape[0], -1, attn.head_dim)
        if attn.bias:
            written[f"{theirs}.bias"] = weights[f"{ours}.bias"].reshape(-1, attn.head_dim)
    kernel = weights["out_proj.weight"].T
    written["out.kernel"] = kernel.reshape(attn.num_heads, attn.head_dim, -1)
    return written | ({"out.bias": weights["out_proj.bias"]} if attn.bias else {})


def _from_nnx(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    read = {}
    for ours, theirs in NNX.items():
        kernel = weights[f"{theirs}.kernel"]
        read[f"{ours}.weight"] = kernel.reshape(kernel.shape[0], -1).T
        if attn.bias:
            read[f"{ours}.bias"] = weights[f"{theirs}.bias"].reshape(-1)
    read["out_proj.weight"] = weights["out.kernel"].reshape(-1, attn.embed_dim).T
    return read | ({"out_proj.bias": weights["out.bias"]} if attn.bias else {})


# What transformers has other names for: one layout, of Llama, Mistral, Qwen, Gemma and GPT-OSS.
LLAMA = {
    "out_proj": "o_proj",
    "process_heads.q_norm": "q_norm",
    "process_heads.k_norm": "k_norm",
}


def _to_llama(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    return _rename(weights, LLAMA)


def _from_llama(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    return _rename(weights, {theirs: ours for ours, theirs in LLAMA.items()})


def _rename(weights: Weights, names: dict[str, str]) -> Weights:
    """Give each weight the other name of the part that it belongs to."""
    parts = {name: name.rpartition(".")[::2] for name in weights}
    renamed = {n: f"{names.get(part, part)}.{last}" for n, (part, last) in parts.items()}
    return {renamed[name].removeprefix("."): array for name, array in weights.items()}


def _to_gemma(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    """Write norms less 1, as Gemma multiplies by 1 + weight; in 16 bits that rounds once."""
    written = _to_llama(weights, prefix, attn)
    return {name: array - 1 if "_norm." in name else array for name, array in written.items()}


def _from_gemma(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    read = _from_llama(weights, prefix, attn)
    return {name: array + 1 if "_norm." in name else array for name, array in read.items()}


WRITERS = {"rosetta": _same, "torch": _to_torch, "nnx": _to_nnx, "gemma": _to_gemma}
READERS = {"rosetta": _same, "torch": _from_torch, "nnx": _from_nnx, "gemma": _from_gemma}
for name in ("llama", "qwen3", "gpt_oss"):  # one layout: which parts there are, the model says
    WRITERS[name], READERS[name] = _to_llama, _from_llama
