"""Files of models: what `save` writes, `load` builds again, in any of the backends.

A file is safetensors: the weights by name, and the class and the settings as metadata. What cannot
be built again from these is refused when it is saved.
"""

import json
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .arrays import dtype_name, is_distributed
from .multihead import MultiHeadAttention
from .rotary import QKNorm, Rotary, rotary
from .seq2seq import Seq2SeqTransformer
from .transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from .weights import (
    export_weights,
    import_weights,
    open_file,
    parameters,
    safetensors_package,
    ties,
)

FORMAT = "attn-rosetta 1"

# The settings that build a model again, by the names of its attributes.
MULTIHEAD = ["embed_dim", "num_heads", "num_kv_heads", "head_dim", "kdim", "vdim", "bias",
             "qkv_bias", "scale", "softcap", "sinks", "process_heads", "dropout", "batch_first",
             "empty_rows"]  # fmt: skip
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
# What a setting may be made of, under the name of its class.
PARTS = {
    "Rotary": ["base", "dim", "interleaved", "scale", "frequencies"],
    "QKNorm": ["head_dim", "then", "eps"],
}
# What a model has that no file keeps: its mode, its random source, and how its weights start.
TRANSIENT = {"training", "deterministic", "rng", "rngs", "param_dtype", "reset_parameters"}


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights and its configuration to a safetensors file that `load` rebuilds.

    Tied parameters come back tied; the mode (training or not), hooks and devices are not kept.
    Raises ValueError for a model that `load` could not build again: a subclass, one with parts
    added, replaced or pruned, a `process_heads` that is neither `rotary` nor `QKNorm`, of several
    dtypes, or whose layers have different settings; and ImportError where safetensors, which only
    files need, is not installed.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled model's own
    held = model.named_parameters() if isinstance(model, nn.Module) else ()
    checks.check_whole([name for name, array in held if is_distributed(array)])
    checks.check_model_class(model, [model_class for model_class, _ in CLASSES.values()])
    weights = export_weights(model)
    settings = _check_kept(model, weights)
    metadata = {"format": FORMAT, "class": type(model).__name__}
    metadata["configuration"] = json.dumps(settings)
    metadata |= {"tied": json.dumps(tied)} if (tied := ties(model)) else {}
    write_file(path, weights, metadata)


def load(path: str | Path) -> Any:
    """Build the model that `save` wrote, in any of the backends, with its weights and their dtype.

    Raises ValueError where the file is truncated, is none of `save`'s or does not fit itself; a
    file that asks for more than it holds is refused before anything is built.
    """
    arrays, metadata = open_file(path)
    model_class, settings = _read_configuration(path, arrays, metadata)
    try:
        device = torch.get_default_device()
        device = torch.device("cpu") if device.type == "meta" else device
        arrays = {name: array.to(device) for name, array in arrays.items()}
        model = build_abstract(model_class, settings, next(iter(arrays.values())).dtype)
        _tie(model, _read_ties(metadata, arrays))
        import_weights(model, arrays)
    except (TypeError, ValueError, RuntimeError) as error:
        raise checks.not_ours(path, str(error)) from error
    return model


def write_file(
    path: str | Path, weights: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays to a safetensors file."""
    files = safetensors_package()
    dense = torch.contiguous_format  # what two parameters share is written twice
    arrays = {name: array.clone(memory_format=dense) for name, array in weights.items()}
    mode = _mode(Path(path))
    files.torch.save_file(arrays, path, metadata)
    Path(path).chmod(mode)  # safetensors lets nobody but the owner read it


def _mode(path: Path) -> int:
    """Return who may read a file that is there, or one that is made there."""
    if path.exists():
        return path.stat().st_mode
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _check_kept(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings of a model, if `load` would build the same of them."""
    try:
        settings = configuration(model)
        model_class, names = CLASSES[type(model).__name__]
        reason = checks.wrong_configuration(settings, names, PARTS, weights)
        if reason:
            raise ValueError(reason)
        twin = build_abstract(model_class, settings, next(iter(weights.values())).dtype)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise checks.not_kept(str(error)) from error
    checks.check_kept(_describe(model), _describe(twin))
    return settings


def configuration(model: Any) -> dict[str, Any]:
    """Return the settings that build such a model."""
    if isinstance(model, Seq2SeqTransformer):
        return _pick(model, TOKENS) | configuration(model.transformer)
    if isinstance(model, Transformer):
        stacks = {"num_encoder_layers": model.encoder, "num_decoder_layers": model.decoder}
        counts = {name: len(stack.layers) for name, stack in stacks.items()}
        return counts | _pick(model.encoder.layers[0], LAYER)
    if isinstance(model, TransformerEncoder | TransformerDecoder):
        counts = {"num_layers": len(model.layers), "norm": model.norm is not None}
        return counts | _pick(model.layers[0], LAYER)
    if isinstance(model, MultiHeadAttention):
        names = [name for name in MULTIHEAD if name != "sinks"]
        return _pick(model, names) | {"sinks": model.sinks is not None}
    return _pick(model, LAYER)


def _pick(module: Any, names: list[str]) -> dict[str, Any]:
    return {name: _plain(getattr(module, name)) for name in names}


def _plain(value: Any) -> Any:
    """Return what JSON knows: the number of a NumPy number, the settings of a part."""
    if type(value) in (Rotary, QKNorm):
        return {"class": type(value).__name__} | _pick(value, PARTS[type(value).__name__])
    if callable(value):
        raise ValueError(f"a {type(value).__name__}, which is none of {', '.join(PARTS)}")
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def _fact(value: Any) -> Any:
    """Return what two settings, arrays or functions have in common if they are alike."""
    if isinstance(value, numbers.Number | str | tuple):
        return value
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{dtype_name(value)} {tuple(value.shape)}"
    return getattr(value, "__qualname__", type(value).__qualname__)


def _tie(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Make one parameter of each pair."""
    places = parameters(model)
    for name, other in tied.items():
        checks.check_tie(name, other, places)
        setattr(*places[name], getattr(*places[other]))


def _read_ties(metadata: Mapping[str, str], arrays: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the ties that a file names; older files name none."""
    try:
        tied = json.loads(metadata.get("tied", "{}"))
    except RecursionError as error:
        raise ValueError("ties that are no JSON") from error
    checks.check_tied(tied, {name: tuple(array.shape) for name, array in arrays.items()})
    return tied


def _read_configuration(
    path: str | Path, arrays: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Any, dict[str, Any]]:
    """Return the class and the settings that a file names, if it can be what it says."""
    if metadata.get("format") != FORMAT or metadata.get("class") not in CLASSES or not arrays:
        raise checks.not_ours(path, "no such format, class or arrays")
    try:
        settings = json.loads(metadata.get("configuration", ""))
    except (ValueError, RecursionError) as error:
        raise checks.not_ours(path, "no configuration") from error
    model_class, names = CLASSES[metadata["class"]]
    reason = checks.wrong_configuration(settings, names, PARTS, arrays)
    if reason:
        raise checks.not_ours(path, reason)
    return model_class, settings


def _build_parts(settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return settings in which parts have taken the place of their settings."""
    parts = settings.keys() & {"process_heads", "then"}
    return settings | {name: _build_part(settings[name], **options) for name in parts}


def _build_part(value: Any, **options: Any) -> Any:
    if not isinstance(value, dict):
        return value
    settings = _build_parts(value, **options)
    return (
        rotary(**settings) if settings.pop("class") == "Rotary" else QKNorm(**settings, **options)
    )


# What frameworks make different


def build_abstract(model_class: Any, settings: dict[str, Any], dtype: Any) -> Any:
    """Build a model to be compared or filled, without drawing its weights where that can be."""
    options = {"dtype": dtype, "device": "meta"}
    return model_class(**_build_parts(settings, **options), **options)


def _describe(model: nn.Module, path: str = "") -> dict[str, Any]:
    """Return classes, settings, shapes and dtypes of all parts of a model, by dotted name."""
    facts: dict[str, Any] = {path: f"{type(model).__module__}.{type(model).__qualname__}"}
    for name, value in {**vars(model), **model._parameters, **model._buffers}.items():
        if value is not None and name not in TRANSIENT and not name.startswith("_"):
            facts[f"{path}.{name}".lstrip(".")] = _fact(value)
    for name, part in model._modules.items():
        facts |= {} if part is None else _describe(part, f"{path}.{name}".lstrip("."))
    return facts
