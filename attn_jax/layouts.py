"""Weight layouts: how other libraries name and lay out an attention's weights.

torch.nn, flax, keras, equinox, timm and transformers. A writer turns our entries into those of the
layout, a reader turns them back. All three backends have this file byte for byte.
"""

from collections.abc import Collection
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
    if attn.qkv_bias:
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
    if attn.qkv_bias:
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


# Layouts that are ours, torch's or nnx's under other names.
LLAMA = {
    "out_proj": "o_proj",
    "process_heads.q_norm": "q_norm",
    "process_heads.k_norm": "k_norm",
}
EQUINOX = {
    "q_proj": "query_proj",
    "k_proj": "key_proj",
    "v_proj": "value_proj",
    "out_proj": "output_proj",
}
BERT = {
    "q_proj": "self.query",
    "k_proj": "self.key",
    "v_proj": "self.value",
    "out_proj": "output.dense",
}
KERAS = {"out": "attention_output"}
TIMM = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias", "out_proj": "proj"}
GPT2 = {"in_proj_weight": "c_attn.weight", "in_proj_bias": "c_attn.bias", "out_proj": "c_proj"}


def _renamed(names: dict[str, str], like: tuple[Any, Any] = (_same, _same)) -> tuple[Any, Any]:
    """Return writer and reader of a layout that is like another under other names."""
    backwards = {theirs: ours for ours, theirs in names.items()}

    def write(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
        return _rename(like[0](weights, prefix, attn), names)

    def read(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
        return like[1](_rename(weights, backwards), prefix, attn)

    return write, read


def _rename(weights: Weights, names: dict[str, str]) -> Weights:
    """Give each weight its other name, or that of the part that it belongs to."""
    renamed = {}
    for name, array in weights.items():
        part, _, last = name.rpartition(".")
        other = names.get(name, f"{names.get(part, part)}.{last}")
        renamed[other.removeprefix(".")] = array
    return renamed


def _turned(layout: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return writer and reader of a layout whose matrices are (in, out)."""
    write, read = layout
    return (
        lambda weights, *model: _transposed(write(weights, *model)),
        lambda weights, *model: read(_transposed(weights), *model),
    )


def _transposed(weights: Weights) -> Weights:
    return {name: array.T if array.ndim == 2 else array for name, array in weights.items()}


TO_LLAMA, FROM_LLAMA = _renamed(LLAMA)


def _to_gemma(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    """Write norms less 1, as Gemma multiplies by 1 + weight; in 16 bits that rounds once."""
    written = TO_LLAMA(weights, prefix, attn)
    return {name: array - 1 if "_norm." in name else array for name, array in written.items()}


def _from_gemma(weights: Weights, prefix: str, attn: MultiHeadAttention) -> Weights:
    read = FROM_LLAMA(weights, prefix, attn)
    return {name: array + 1 if "_norm." in name else array for name, array in read.items()}


TORCH, NNX_LAYOUT = (_to_torch, _from_torch), (_to_nnx, _from_nnx)
LAYOUTS = {
    "rosetta": (_same, _same),
    "torch": TORCH,
    "nnx": NNX_LAYOUT,
    "linen": NNX_LAYOUT,
    "keras": _renamed(KERAS, NNX_LAYOUT),
    "equinox": _renamed(EQUINOX),
    "timm": _renamed(TIMM, TORCH),
    "bert": _renamed(BERT),
    "gpt2": _turned(_renamed(GPT2, TORCH)),
    "gemma": (_to_gemma, _from_gemma),
}
for name in ("llama", "qwen3", "gpt_oss"):  # one layout: which parts there are, the model says
    LAYOUTS[name] = TO_LLAMA, FROM_LLAMA
WRITERS = {name: writer for name, (writer, _) in LAYOUTS.items()}
READERS = {name: reader for name, (_, reader) in LAYOUTS.items()}

# Two names that an attention has in each layout, by which it is recognised.
SIGNS = (
    ("rosetta", "q_proj.weight", "out_proj.weight"),
    ("torch", "in_proj_weight", "out_proj.weight"),
    ("torch", "q_proj_weight", "out_proj.weight"),
    ("nnx", "query.kernel", "out.kernel"),
    ("keras", "query.kernel", "attention_output.kernel"),
    ("equinox", "query_proj.weight", "output_proj.weight"),
    ("timm", "qkv.weight", "proj.weight"),
    ("bert", "self.query.weight", "output.dense.weight"),
    ("gpt2", "c_attn.weight", "c_proj.weight"),
    ("llama", "q_proj.weight", "o_proj.weight"),
)
# What stands beside an attention's weights under its prefix: the norm of BERT's residual, GPT-2's
# table of causality, and Llama's frequencies, which older files hold.
BESIDE = {
    "bert": ("output.LayerNorm.weight", "output.LayerNorm.bias"),
    "gpt2": ("bias", "masked_bias"),
    "llama": ("rotary_emb.inv_freq",),
}


def recognise(names: Collection[str]) -> list[tuple[str, str]]:
    """Return the layout of each attention that names tell of, and the prefix of its names.

    >>> recognise(["layers.0.self_attn.in_proj_weight", "layers.0.self_attn.out_proj.weight"])
    [('torch', 'layers.0.self_attn.')]
    """
    looks = []
    for name in names:
        for layout, first, second in SIGNS:
            prefix = name.removesuffix(first)
            if prefix + first == name and prefix[-1:] in ("", ".") and prefix + second in names:
                looks.append((layout, prefix))
    return looks
