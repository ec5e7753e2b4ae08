"""Weights in and out of a model: one naming for all backends, and other libraries' layouts.

A parameter's name is the path to it, such as `encoder.layers.0.self_attn.q_proj.weight`; matrices
are (out, in). The layouts "torch" and "nnx" are those of torch.nn's modules (in_proj_weight and so
on) and of flax.nnx.MultiHeadAttention (kernels by head); "llama" (Mistral's and Qwen 2's, too),
and "gemma" (1 to 3) are those of one attention in transformers; "qwen3" and "gpt_oss" are other
names of "llama", for the model says which norms and sinks there are. Nothing is ever unpickled.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from . import checks
from .arrays import is_concrete
from .layouts import READERS, WRITERS
from .multihead import MultiHeadAttention

# flax.nnx's own names of parameters, and ours.
NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def export_weights(model: nnx.Module, layout: str = "rosetta") -> dict[str, Array]:
    """Return a model's weights by name, in the layout "rosetta" or another library's.

    Raises ValueError where the layout has no such thing: grouped heads in torch, layers in nnx; and
    where a weight is no parameter with values: pruned, quantized, abstract.

    >>> attn = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    >>> sorted(export_weights(attn))[:4]
    ['k_proj.bias', 'k_proj.weight', 'out_proj.bias', 'out_proj.weight']
    >>> sorted(export_weights(attn, "torch"))
    ['in_proj_bias', 'in_proj_weight', 'out_proj.bias', 'out_proj.weight']
    """
    checks.check_has_values(
        [name for name, place in parameters(model).items() if _is_abstract(getattr(*place))]
    )
    return _lay_out(model, layout)


def import_weights(
    model: nnx.Module, weights: Mapping | str | Path, layout: str = "rosetta"
) -> None:
    """Put weights into a model: a mapping by name, nested or not, or a safetensors file of one.

    The arrays may be any framework's, but must have the model's shapes and dtype; they are copied.
    A model without values yet, built on the meta device or by `nnx.eval_shape`, gets them here;
    its dropout gets keys by `nnx.reseed`.
    Raises one ValueError that lists everything missing, unexpected, unreadable, of another shape or
    dtype, and then nothing is loaded.

    >>> attn, other = (MultiHeadAttention(8, 2, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    >>> import_weights(attn, export_weights(other, "nnx"), "nnx")
    >>> bool((attn.q_proj.kernel == other.q_proj.kernel).all())
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


def ties(model: nnx.Module) -> dict[str, str]:
    """Return every parameter that is another one's, too, and the first name of that."""
    first: dict[Any, str] = {}
    for name, place in parameters(model).items():
        first.setdefault(_identity(getattr(*place)), name)
    names = {n: first[_identity(getattr(*place))] for n, place in parameters(model).items()}
    return {name: other for name, other in names.items() if name != other}


def _lay_out(model: nnx.Module, layout: str) -> dict[str, Array]:
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


def parameters(model: nnx.Module, prefix: str = "") -> dict[str, tuple[nnx.Module, str]]:
    """Return where each parameter stands, by its dotted name: the module and its attribute."""
    places: dict[str, tuple[nnx.Module, str]] = {}
    for name, value in vars(model).items():
        if isinstance(value, nnx.Param):
            places[f"{prefix}{NAMES.get(name, name)}"] = model, name
        elif isinstance(value, nnx.Module):
            places |= parameters(value, f"{prefix}{name}.")
    return places


def _read(model: nnx.Module) -> dict[str, Array]:
    arrays = {name: (getattr(*place)[...], place[1]) for name, place in parameters(model).items()}
    return {name: array.T if attr == "kernel" else array for name, (array, attr) in arrays.items()}


def _wanted(model: nnx.Module, layout: str) -> Any:
    """Return what has the names, shapes and dtypes of what goes in."""
    shapes = nnx.eval_shape(lambda abstract: OrderedDict(_lay_out(abstract, layout)), model)
    # flax sorts what it maps, and JAX a plain dict
    places = {name: place for place, name in enumerate(parameters(model))}
    return dict(sorted(shapes.items(), key=lambda named: places.get(named[0], -1)))


def _write(model: nnx.Module, arrays: dict[str, Any]) -> None:
    places = parameters(model)
    turned = {n: a.T if places[n][1] == "kernel" else a for n, a in arrays.items()}
    ready = {name: _placed(array, getattr(*places[name])) for name, array in turned.items()}
    for name, place in places.items():  # all are ready before the first is written
        getattr(*place).set_value(ready[name])


def _placed(array: Any, parameter: nnx.Param) -> Array:
    """Return a copy that lies on the devices that the parameter is bound to, if to any."""
    held = parameter.get_value()
    bound = is_concrete(held) and getattr(held, "committed", _is_abstract(parameter))
    sharding = held.sharding if bound else None
    copy = np.array(array)  # which JAX may go on to use as its own memory
    return jnp.asarray(copy) if sharding is None else jax.device_put(copy, sharding)


def _identity(parameter: nnx.Param) -> Any:
    """Return what two parameters share only if writing to one writes to the other."""
    return id(parameter)


def _is_abstract(parameter: nnx.Param) -> bool:
    """Whether a parameter has a shape and a dtype, but no values."""
    return isinstance(parameter.get_value(), jax.ShapeDtypeStruct)


def _are_equal(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def _attentions(model: nnx.Module, prefix: str = "") -> dict[str, MultiHeadAttention]:
    """Return every attention of a model by the prefix of its names."""
    if isinstance(model, MultiHeadAttention):
        return {prefix: model}
    attentions: dict[str, MultiHeadAttention] = {}
    for name, part in vars(model).items():
        if isinstance(part, nnx.Module):
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
            array = np.asarray(value[...] if isinstance(value, nnx.Variable) else value)
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
