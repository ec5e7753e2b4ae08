"""Weights in and out: one naming for all backends, safetensors files, and other libraries' layouts.

A parameter's name is the path to it, such as `encoder.layers.0.self_attn.q_proj.weight`; matrices
are (out, in). The layouts "torch" and "nnx" are those of torch.nn's modules (in_proj_weight and so
on) and of flax.nnx.MultiHeadAttention (kernels by head). Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import checks
from .layers import Module
from .layouts import READERS, WRITERS
from .multihead import MultiHeadAttention
from .seq2seq import Seq2SeqTransformer
from .transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

FORMAT = "attn-rosetta 1"

# The settings that build a model again, by the names of its attributes.
MULTIHEAD = ["embed_dim", "num_heads", "num_kv_heads", "kdim", "vdim", "bias", "dropout",
             "batch_first", "empty_rows"]  # fmt: skip
LAYER = ["d_model", "nhead", "dim_feedforward", "dropout", "activation", "layer_norm_eps",
         "batch_first", "norm_first", "bias", "empty_rows"]  # fmt: skip
STACK = ["num_layers", "norm", *LAYER]
BOTH = ["num_encoder_layers", "num_decoder_layers", *LAYER]
TOKENS = ["src_vocab", "tgt_vocab", "padding_idx", "positions"]
CLASSES: dict[str, Any] = {
    "MultiHeadAttention": (MultiHeadAttention, MULTIHEAD),
    "TransformerEncoderLayer": (TransformerEncoderLayer, LAYER),
    "TransformerDecoderLayer": (TransformerDecoderLayer, LAYER),
    "TransformerEncoder": (TransformerEncoder, STACK),
    "TransformerDecoder": (TransformerDecoder, STACK),
    "Transformer": (Transformer, BOTH),
    "Seq2SeqTransformer": (Seq2SeqTransformer, [*TOKENS, *BOTH]),
}


def export_weights(model: Module, layout: str = "rosetta") -> dict[str, np.ndarray]:
    """Return a model's weights by name, in the layout "rosetta", "torch" or "nnx".

    Raises ValueError where the layout has no such thing: grouped heads in torch, layers in nnx.

    >>> sorted(export_weights(MultiHeadAttention(8, 2, bias=False)))
    ['k_proj.weight', 'out_proj.weight', 'q_proj.weight', 'v_proj.weight']
    >>> sorted(export_weights(MultiHeadAttention(8, 2), "torch"))
    ['in_proj_bias', 'in_proj_weight', 'out_proj.bias', 'out_proj.weight']
    """
    attentions = _attentions(model)
    checks.check_layout(layout, attentions)
    weights = _read(model)
    for prefix, attn in attentions.items():
        weights = WRITERS[layout](weights, prefix, attn)
    return weights


def import_weights(model: Module, weights: Mapping | str | Path, layout: str = "rosetta") -> None:
    """Put weights into a model: a mapping by name, nested or not, or a safetensors file of one.

    The arrays may be any framework's, but must have the model's shapes and dtype. Raises one
    ValueError that lists everything missing, unexpected, of another shape or dtype, and then
    nothing is loaded.

    >>> attn, other = MultiHeadAttention(8, 2), MultiHeadAttention(8, 2)
    >>> import_weights(attn, export_weights(other, "nnx"), "nnx")
    >>> bool((attn.q_proj.weight == other.q_proj.weight).all())
    True
    """
    if isinstance(weights, str | Path):
        weights = _open(weights)[0]
    checks.check_mapping(weights)
    arrays = {name: _array(name, value) for name, value in _flat(weights).items()}
    checks.check_weights(arrays, export_weights(model, layout))
    for prefix, attn in _attentions(model).items():
        arrays = READERS[layout](arrays, prefix, attn)
    _write(model, arrays)


def save(model: Module, path: str | Path) -> None:
    """Write a model's weights and its configuration to a safetensors file that `load` rebuilds.

    Raises ImportError where safetensors, which only files need, is not installed.
    """
    files = _safetensors()
    metadata = {"format": FORMAT, "class": type(model).__name__}
    metadata["configuration"] = json.dumps(_configuration(model))
    arrays = {name: np.ascontiguousarray(array) for name, array in export_weights(model).items()}
    files.numpy.save_file(arrays, path, metadata)


def load(path: str | Path) -> Any:
    """Build the model that `save` wrote, in any of the backends, with its weights and their dtype.

    Raises ValueError where the file is truncated, is none of `save`'s or does not fit itself; a
    file that asks for more than it holds is refused before anything is built.
    """
    arrays, metadata = _open(path)
    model_class, settings = _read_configuration(path, arrays, metadata)
    try:
        model = model_class(**settings, dtype=next(iter(arrays.values())).dtype)
        import_weights(model, arrays)
    except (TypeError, ValueError) as error:
        raise checks.not_ours(path, str(error)) from error
    return model


# What frameworks make different


def _read(model: Module) -> dict[str, np.ndarray]:
    return {name: getattr(*place) for name, place in model.parameters().items()}


def _write(model: Module, arrays: dict[str, np.ndarray]) -> None:
    for name, (module, attribute) in model.parameters().items():
        setattr(module, attribute, arrays[name].copy())


def _attentions(model: Module, prefix: str = "") -> dict[str, MultiHeadAttention]:
    """Return every attention of a model by the prefix of its names."""
    if isinstance(model, MultiHeadAttention):
        return {prefix: model}
    attentions: dict[str, MultiHeadAttention] = {}
    for name, part in model.parts():
        attentions |= _attentions(part, f"{prefix}{name}.")
    return attentions


def _array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach()
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} must be readable by NumPy: got {error}") from error


def _open(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a safetensors file's arrays and metadata."""
    files = _safetensors()
    try:
        with files.safe_open(path, "numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (files.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise checks.not_ours(path, str(error)) from error


def _safetensors() -> Any:
    """Return the package that reads and writes files, and that nothing else needs."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise checks.no_safetensors(error) from error
    return safetensors


# Files


def _configuration(model: Any) -> dict[str, Any]:
    """Return the settings that build such a model."""
    if isinstance(model, Seq2SeqTransformer):
        return _pick(model, TOKENS) | _configuration(model.transformer)
    if isinstance(model, Transformer):
        stacks = {"num_encoder_layers": model.encoder, "num_decoder_layers": model.decoder}
        counts = {name: len(stack.layers) for name, stack in stacks.items()}
        return counts | _pick(model.encoder.layers[0], LAYER)
    if isinstance(model, TransformerEncoder | TransformerDecoder):
        counts = {"num_layers": len(model.layers), "norm": model.norm is not None}
        return counts | _pick(model.layers[0], LAYER)
    return _pick(model, MULTIHEAD if isinstance(model, MultiHeadAttention) else LAYER)


def _pick(module: Any, names: list[str]) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


def _read_configuration(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> tuple[Any, dict[str, Any]]:
    """Return the class and the settings that a file names, if it can be what it says."""
    if metadata.get("format") != FORMAT or metadata.get("class") not in CLASSES or not arrays:
        raise checks.not_ours(path, "no such format, class or arrays")
    try:
        settings = json.loads(metadata.get("configuration", ""))
    except (ValueError, RecursionError) as error:
        raise checks.not_ours(path, "no configuration") from error
    model_class, names = CLASSES[metadata["class"]]
    checks.check_configuration(path, settings, names, arrays)
    return model_class, settings


def _flat(weights: Mapping, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
