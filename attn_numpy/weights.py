"""Weights in and out of a model: one naming for all backends, and other libraries' layouts.

A parameter's name is the path to it, such as `encoder.layers.0.self_attn.q_proj.weight`; matrices
are (out, in). The layout "torch" is that of torch.nn's modules, of whole models, too. The others
are those of one attention: "nnx", "linen", "keras", "equinox", "timm", and of transformers "bert",
"gpt2", "llama" (Mistral's and Qwen 2's, too) and "gemma" (1 to 3); "qwen3" and "gpt_oss" are other
names of "llama", for the model says which norms and sinks there are. Nothing is ever unpickled.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import checks
from .arrays import dtype_name
from .layers import Module
from .layouts import BESIDE, READERS, WRITERS, recognise
from .multihead import MultiHeadAttention


def export_weights(model: Module, layout: str = "rosetta") -> dict[str, np.ndarray]:
    """Return a model's weights by name, in the layout "rosetta" or another library's.

    Raises ValueError where the layout has no such thing: grouped heads in torch, layers in nnx,
    heads that nobody turns in llama; and where a weight is no parameter with values: pruned,
    quantized, abstract.

    >>> sorted(export_weights(MultiHeadAttention(8, 2, bias=False)))
    ['k_proj.weight', 'out_proj.weight', 'q_proj.weight', 'v_proj.weight']
    >>> sorted(export_weights(MultiHeadAttention(8, 2), "torch"))
    ['in_proj_bias', 'in_proj_weight', 'out_proj.bias', 'out_proj.weight']
    """
    checks.check_has_values(
        [name for name, place in parameters(model).items() if _is_abstract(getattr(*place))]
    )
    return {name: _in_order(array) for name, array in _lay_out(model, layout).items()}


def import_weights(
    model: Module,
    weights: Mapping | str | Path,
    layout: str = "rosetta",
    *,
    prefix: str = "",
    cast: bool = False,
) -> None:
    """Put weights into a model: a mapping by name, nested or not, or a safetensors file of one.

    The arrays may be any framework's, but must have the model's shapes and dtype; they are copied.
    `layout="auto"` recognises the layout by its names. `prefix` takes what begins with it out of
    more weights, and nothing else is read; `a/b` is read as `a.b`. `cast=True` makes the model's
    float dtype of another one.
    A model without values yet, built on the meta device or by `nnx.eval_shape`, gets them here.
    Raises one ValueError that lists everything missing, unexpected, unreadable, of another shape or
    dtype, or too large for it, says which layout the names look like, and nothing is loaded.
    Raises ValueError, too, where a layout turns heads by position and the model does not.

    >>> attn, other = MultiHeadAttention(8, 2), MultiHeadAttention(8, 2)
    >>> import_weights(attn, export_weights(other, "nnx"), "nnx")
    >>> bool((attn.q_proj.weight == other.q_proj.weight).all())
    True
    """
    checks.check_prefix(prefix)
    checks.check_switches(cast=cast)
    if isinstance(weights, str | Path):
        weights = open_file(weights, prefix)[0]
    checks.check_mapping(weights)
    arrays = {name: _array(value) for name, value in part(weights, prefix).items()}
    looks, begin = _looks_like(model, arrays), dotted(prefix)
    layout = checks.recognised(looks, list(arrays), begin) if layout == "auto" else layout
    wanted = _wanted(model, layout)
    beside = [name for name in BESIDE.get(layout, ()) if name not in wanted]
    arrays = {name: array for name, array in arrays.items() if name not in beside}
    if cast:
        arrays |= {n: _cast(arrays[n], like) for n, like in wanted.items() if n in arrays}
    checks.check_weights(arrays, wanted, layout, looks, begin)
    for path, attn in attentions(model).items():
        arrays = READERS[layout](arrays, path, attn)
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


def part(weights: Mapping, prefix: str) -> dict[str, Any]:
    """Return what lies under a prefix, nested or not, by the rest of its name."""
    named, prefix = [(_path(name), value) for name, value in _flat(weights)], dotted(prefix)
    checks.check_names([name for name, _ in named], prefix)
    chosen = [(name, value) for name, value in named if name.startswith(prefix)]
    return {name.removeprefix(prefix): value for name, value in chosen}


def _lay_out(model: Module, layout: str) -> dict[str, np.ndarray]:
    """Return the weights in a layout, whether they have values or not."""
    by_prefix = attentions(model)
    checks.check_layout(layout, by_prefix)
    weights = _read(model)
    for prefix, attn in by_prefix.items():
        checks.check_projections(weights, layout, prefix, attn)
        weights = WRITERS[layout](weights, prefix, attn)
    return weights


def _path(name: str) -> str:
    """Return a name in which dots part the steps, as slashes do in keras."""
    return name.replace("/", ".").lstrip(".")


def dotted(prefix: str) -> str:
    """Return a prefix as names have it, with a dot at its end."""
    return f"{_path(prefix).rstrip('.')}." if prefix else ""


def _flat(weights: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in weights.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _looks_like(model: Module, names: Mapping) -> list[tuple[str, str]]:
    """Return the layouts that names tell of, and under which prefix the model would be there."""
    paths = attentions(model)
    looks = [(layout, at, path) for layout, at in recognise(names) for path in paths]
    return [(layout, at.removesuffix(path)) for layout, at, path in looks if at.endswith(path)]


# What frameworks make different


def parameters(model: Module, prefix: str = "") -> dict[str, tuple[Module, str]]:
    """Return where each parameter stands, by its dotted name: the module and its attribute."""
    return model.parameters(prefix)


def _read(model: Module) -> dict[str, np.ndarray]:
    return {name: getattr(*place) for name, place in parameters(model).items()}


def _in_order(array: np.ndarray) -> np.ndarray:
    """Return an array that lies in memory as a file has it.

    Of a view `safetensors.numpy` would write other numbers, without a word.
    """
    return np.ascontiguousarray(array)


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


def attentions(model: Module, prefix: str = "") -> dict[str, MultiHeadAttention]:
    """Return every attention of a model by the prefix of its names."""
    if isinstance(model, MultiHeadAttention):
        return {prefix: model}
    by_prefix: dict[str, MultiHeadAttention] = {}
    for name, part in model.parts():
        by_prefix |= attentions(part, f"{prefix}{name}.")
    return by_prefix


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


def _cast(array: Any, like: np.ndarray) -> Any:
    """Return floats in another's dtype, or why they cannot be; what is no float as it is."""
    if isinstance(array, str) or dtype_name(array) not in checks.FLOATS:
        return array
    with np.errstate(over="ignore"):
        done = array.astype(like.dtype)
    lost = (np.isfinite(done) != np.isfinite(array)).any()
    return checks.beyond(dtype_name(like)) if lost else done


def open_file(path: str | Path, prefix: str = "") -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a safetensors file's arrays under a prefix, and its metadata."""
    files = safetensors_package()
    if Path(path).is_dir():
        raise checks.not_ours(path, "a folder")
    try:
        with files.safe_open(path, "numpy") as file:
            names, metadata = file.keys(), file.metadata() or {}
            chosen = [name for name in names if _path(name).startswith(dotted(prefix))]
            arrays = {name: file.get_tensor(name) for name in chosen}
    except (files.SafetensorError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise checks.not_ours(path, str(error)) from error
    checks.check_names([_path(name) for name in names], dotted(prefix))
    return arrays, metadata


def safetensors_package() -> Any:
    """Return the package that reads and writes files, and that nothing else needs."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise checks.no_safetensors(error) from error
    return safetensors
