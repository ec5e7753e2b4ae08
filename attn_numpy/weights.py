"""Weights in and out of a model: one naming for all backends, and other libraries' layouts.

A parameter's name is the path to it, such as `encoder.layers.0.self_attn.q_proj.weight`; matrices
are (out, in). The layouts "torch" and "nnx" are those of torch.nn's modules (in_proj_weight and so
on) and of flax.nnx.MultiHeadAttention (kernels by head); "llama" (Mistral's and Qwen 2's, too),
and "gemma" (1 to 3) are those of one attention in transformers; "qwen3" and "gpt_oss" are other
names of "llama", for the model says which norms and sinks there are. Nothing is ever unpickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import checks
from .layers import Module
from .layouts import READERS, WRITERS
from .multihead import MultiHeadAttention


def export_weights(model: Module, layout: str = "rosetta") -> dict[str, np.ndarray]:
    """Return a model's weights by name, in the layout "rosetta" or another library's.

    Raises ValueError where the layout has no such thing: grouped heads in torch, layers in nnx; and
    where a weight is no parameter with values: pruned, quantized, abstract.

    >>> sorted(export_weights(MultiHeadAttention(8, 2, bias=False)))
    ['k_proj.weight', 'out_proj.weight', 'q_proj.weight', 'v_proj.weight']
    >>> sorted(export_weights(MultiHeadAttention(8, 2), "torch"))
    ['in_proj_bias', 'in_proj_weight', 'out_proj.bias', 'out_proj.weight']
    """
    checks.check_has_values(
        [name for name, place in parameters(model).items() if _is_abstract(getattr(*place))]
    )
    return _lay_out(model, layout)


def import_weights(model: Module, weights: Mapping | str | Path, layout: str = "rosetta") -> None:
    """Put weights into a model: a mapping by name, nested or not, or a safetensors file of one.

    The arrays may be any framework's, but must have the model's shapes and dtype; they are copied.
    A model without values yet, built on the meta device or by `nnx.eval_shape`, gets them here.
    Raises one ValueError that lists everything missing, unexpected, unreadable, of another shape or
    dtype, and then nothing is loaded.

    >>> attn, other = MultiHeadAttention(8, 2), MultiHeadAttention(8, 2)
    >>> import_weights(attn, export_weights(other, "nnx"), "nnx")
    >>> bool((attn.q_proj.weight == other.q_proj.weight).all())
    True
    """
    if isinstance(weights, str | Path):
        weights = open_file(weights)[0]
    checks.check_mapping(weights)
    arrays = {name: _array(value) for name, value in _flat(weights).items()}
    checks.check_weights(arrays, _wanted(model, layout))
    for prefix, attn in _attentions(model).items():
        arrays = READERS[layout](arrays, prefix, attn)
    tied = ties(model)
    checks.check_ties([pair for pair in tied.items() if not _are_equal(*map(arrays.get, pair))])
    _write(model, arrays)


def ties(model: Module) -> dict[str, str]:
    """Return every parameter that is another one's, too, and the first name of that."""
    first: dict[Any, str] = {}
    for name, place in parameters(model).items():
        first.setdefault(_identity(getattr(*place)), name)
    names = {n: first[_identity(getattr(*place))] for n, place in parameters(model).items()}
    return {name: other for name, other in names.items() if name != other}


def _lay_out(model: Module, layout: str) -> dict[str, np.ndarray]:
    """Return the weights in a layout, whether they have values or not."""
    attentions = _attentions(model)
    checks.check_layout(layout, attentions)
    weights = _read(model)
    for prefix, attn in attentions.items():
        checks.check_projections(weights, layout, prefix, attn.bias)
        weights = WRITERS[layout](weights, prefix, attn)
    return weights


def _flat(weights: Mapping, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


# What frameworks make different


def parameters(model: Module, prefix: str = "") -> dict[str, tuple[Module, str]]:
    """Return where each parameter stands, by its dotted name: the module and its attribute."""
    return model.parameters(prefix)


def _read(model: Module) -> dict[str, np.ndarray]:
    return {name: getattr(*place) for name, place in parameters(model).items()}


def _wanted(model: Module, layout: str) -> dict[str, np.ndarray]:
    """Return what has the names, shapes and dtypes of what goes in."""
    return _lay_out(model, layout)


def _write(model: Module, arrays: dict[str, np.ndarray]) -> None:
    tied, places = ties(model), parameters(model)
    ready = {name: array.copy() for name, array in arrays.items()}
    for name, place in places.items():  # all are ready before the first is written
        setattr(*place, ready[name])
    for name, other in tied.items():
        setattr(*places[name], getattr(*places[other]))


def _identity(parameter: np.ndarray) -> Any:
    """Return what two parameters share only if writing to one writes to the other."""
    return parameter.__array_interface__["data"], parameter.shape, parameter.strides


def _is_abstract(parameter: np.ndarray) -> bool:
    """Whether a parameter has a shape and a dtype, but no values.

    Never, in NumPy.
    """
    return False


def _are_equal(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def _attentions(model: Module, prefix: str = "") -> dict[str, MultiHeadAttention]:
    """Return every attention of a model by the prefix of its names."""
    if isinstance(model, MultiHeadAttention):
        return {prefix: model}
    attentions: dict[str, MultiHeadAttention] = {}
    for name, part in model.parts():
        attentions |= _attentions(part, f"{prefix}{name}.")
    return attentions


def _array(value: Any) -> Any:
    """Return an array in the machine's byte order, or why it cannot be read."""
    try:
        if hasattr(value, "detach"):  # a tensor of torch, whose bfloat16 NumPy does not have
            halved = str(value.dtype) == "torch.bfloat16"
            array = (value.float() if halved else value).numpy(force=True)
            array = array.astype("bfloat16") if halved else array
        else:
            array = np.asarray(value)
    except Exception as error:  # whatever reading another library's array may raise
        return checks.unreadable(error)
    if array.dtype.kind in "OSU":
        return "which has no values"
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def open_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a safetensors file's arrays and metadata."""
    files = safetensors_package()
    try:
        with files.safe_open(path, "numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (files.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise checks.not_ours(path, str(error)) from error


def safetensors_package() -> Any:
    """Return the package that reads and writes files, and that nothing else needs."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise checks.no_safetensors(error) from error
    return safetensors
