"""Weights in another layout: a file is read, written, read again, and both are run.

All three backends have this file byte for byte.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import checks
from .arrays import copy_like, dtype_name, from_numpy, to_numpy
from .files import FORMAT, build_abstract, configuration, load, save, write_file
from .layouts import BESIDE, READERS, SIGNS, WRITERS, Weights, recognise
from .multihead import MultiHeadAttention
from .weights import attentions, dotted, export_weights, import_weights, open_file, part

BATCH, LENGTH = 2, 5
FAR = 16  # apart in a trace: a norm may be written less 1


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    layout: str = "auto",
    prefix: str = "",
    heads: int | None = None,
) -> list[str]:
    """Write the weights of a file in another layout; return what went where, line by line.

    `source` is a file of `save`'s, or one of an attention's weights, under a `prefix` and in a
    `layout` of `import_weights`; `heads` is how many heads it has, where its arrays do not tell.
    Written to "rosetta", `target` is a file that `load` builds. Before there is a `target`, a
    model is read from each of the two files, and both are run on random input. Raises ValueError
    where their outputs differ, a layout cannot say what the source says, or `target` is `source`;
    TypeError where an array has no floats.
    """
    checks.check_target(source, target)
    arrays, metadata = open_file(source, prefix)
    beside: list[str] = []
    if metadata.get("format") == FORMAT:
        checks.check_own_file(layout, prefix)
        model, layout = load(source), "rosetta"
    else:
        arrays = part(arrays, prefix)
        if layout == "auto":
            layout = checks.recognised(recognise(arrays), list(arrays), dotted(prefix))
        beside = [name for name in BESIDE.get(layout, ()) if arrays.pop(name, None) is not None]
        for name, array in arrays.items():
            checks.check_float(name, array)
        settings = _read_settings(arrays, layout, heads)
        model = build_abstract(MultiHeadAttention, settings, next(iter(arrays.values())).dtype)
        import_weights(model, arrays, layout)
    weights = export_weights(model, to)
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder:
        written = Path(folder, Path(target).name)
        save(model, written) if to == "rosetta" else write_file(written, weights)
        twin = build_abstract(type(model), configuration(model), next(iter(weights.values())).dtype)
        import_weights(twin, written, to)
        proof = _compare(_run(model, weights), _run(twin, weights))
        left_out = [f"{name} is left out" for name in beside]
        names = f"{source} ({layout})", f"{target} ({to})"
        lines = [*_table(model, layout, to, names), *left_out, _describe(model), proof]
        os.replace(written, target)
    return lines


def _read_settings(arrays: Weights, layout: str, heads: int | None) -> dict[str, Any]:
    """Return the settings of the attention whose weights these are, by names and shapes."""
    checks.check_tells_all(layout)
    signs = [pair for name, *pair in SIGNS if name == checks.SAME_NAMES.get(layout, layout)]
    signs = [pair for pair in signs if all(name in arrays for name in pair)]
    if not signs:
        raise checks.not_in_layout(layout, list(arrays))
    first, last = signs[0]
    out_bias = f"{last.rpartition('.')[0]}.bias"
    by_head = len(arrays[last].shape) == 3
    try:
        width = arrays[last].shape[-1 if by_head or layout == "gpt2" else 0]
        attn: Any = SimpleNamespace(embed_dim=width, kdim=width, vdim=width)
        attn.kdim = 0 if first == "q_proj_weight" else width
        attn.bias = out_bias in arrays
        attn.qkv_bias = any(name.endswith("bias") for name in arrays if name != out_bias)
        read = READERS[layout](arrays, "", attn)
        shapes = {name: tuple(read[f"{name}_proj.weight"].shape) for name in "qkv"}
        (rows, _), (kv_rows, kdim), (_, vdim) = shapes.values()
    except (LookupError, RuntimeError, ValueError) as error:
        raise checks.not_in_layout(layout, list(arrays)) from error
    heads = checks.number_of_heads(heads, arrays[first].shape[1] if by_head else None, shapes)
    head_dim = rows // heads
    sizes = {"embed_dim": width, "num_heads": heads, "num_kv_heads": kv_rows // head_dim}
    sizes |= {"head_dim": head_dim, "kdim": kdim, "vdim": vdim}
    return sizes | {"bias": attn.bias, "qkv_bias": attn.qkv_bias}


def _run(model: Any, weights: Weights) -> np.ndarray:
    """Return what a model makes of random input, in the dtype of its weights."""
    rng, like = np.random.default_rng(0), next(iter(weights.values()))
    first = next(iter(attentions(model).values()))
    widths = {"MultiHeadAttention": [first.embed_dim, first.kdim, first.vdim]}
    sources = 1 if "Encoder" in type(model).__name__ else 2
    inputs = [
        copy_like(from_numpy(rng.normal(size=(BATCH, LENGTH, width))), like)
        for width in widths.get(type(model).__name__, [first.embed_dim] * sources)
    ]
    if type(model).__name__ == "Seq2SeqTransformer":
        sizes = model.src_vocab, model.tgt_vocab
        inputs = [from_numpy(rng.integers(0, size, (BATCH, LENGTH))) for size in sizes]
    alone = getattr(model, "process_heads", None) is not None  # turns a query's own keys
    model.eval()
    output = model(*inputs[:1] if alone else inputs)
    output = output[0] if isinstance(output, tuple) else output
    return to_numpy(copy_like(output, from_numpy(np.zeros(1, np.float32))))


def _compare(one: np.ndarray, other: np.ndarray) -> str:
    """Check that two outputs are the same numbers; return the proof in words."""
    checks.check_same_outputs(one, other)
    shape, largest = tuple(one.shape), abs(one).max()
    return f"both files were run: the same output {shape}, bit for bit, up to {largest:.3g}"


def _table(model: Any, layout: str, to: str, names: tuple[str, str]) -> list[str]:
    """Return a row for each array that was written: where it comes from, and its shape."""
    (source, _), (target, shapes) = _trace(model, layout), _trace(model, to)
    rows = [(names[0], names[1])]
    for name, parts in target.items():
        origins = [n for n, held in source.items() if set(held) & set(parts)]
        rows.append((", ".join(origins), f"{name} {shapes[name]}"))
    width = max(len(origin) for origin, _ in rows)
    return [f"{origin:{width}}  ->  {written}" for origin, written in rows]


def _trace(model: Any, layout: str) -> tuple[dict[str, list[int]], dict[str, tuple]]:
    """Return which of our weights are in each array of a layout, by number, and its shape."""
    traced = {
        name: from_numpy(np.full(array.shape, FAR * i, np.float32))
        for i, (name, array) in enumerate(export_weights(model).items(), 1)
    }
    for path, attn in attentions(model).items():
        traced = WRITERS[layout](traced, path, attn)
    held = {name: np.unique(np.rint(to_numpy(array) / FAR)) for name, array in traced.items()}
    return (
        {name: numbers.astype(int).tolist() for name, numbers in held.items()},
        {name: tuple(array.shape) for name, array in traced.items()},
    )


def _describe(model: Any) -> str:
    first = next(iter(attentions(model).values()))
    groups = f", {first.num_kv_heads} of keys" if first.num_kv_heads != first.num_heads else ""
    dtype = dtype_name(next(iter(export_weights(model).values())))
    heads = f"{first.num_heads} heads of {first.head_dim}{groups}"
    return f"{type(model).__name__}: {heads}, {dtype}"


def main(words: list[str] | None = None) -> int:
    """Convert as the command line says; return 0, or 1 where nothing was written."""
    parser = argparse.ArgumentParser(f"python -m {__package__}", description=__doc__)
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "convert", help="write weights in another layout, and prove it by running both files"
    )
    command.add_argument("source", help="a safetensors file, of save's or of another library")
    command.add_argument("target", help="the file to write")
    command.add_argument("--to", required=True, choices=list(checks.LAYOUTS), help="its layout")
    known = ["auto", *checks.LAYOUTS]
    command.add_argument(
        "--from", dest="layout", default="auto", choices=known, help="the source's layout"
    )
    command.add_argument("--prefix", default="", help="of an attention in a larger source")
    command.add_argument("--heads", type=int, help="how many, where the source does not tell")
    options = vars(parser.parse_args(words))
    try:
        print("\n".join(convert(**options)))
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"nothing was written: {error}", file=sys.stderr)
        return 1
    return 0
