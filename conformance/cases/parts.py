"""Calls whose keys are split into pieces, and how what the pieces give is put together again."""

from dataclasses import replace

import numpy as np

from ..mask_spec import allow
from ..oracle import expected, naive, reference
from ..oracle.tolerance import MERGED, check_dtype, compare, dtype
from ..subjects.protocol import Subject
from .arrays import normal
from .attention import Case

SIZES = (3, 0, 4)  # where each new size costs a compilation


def without_mean(case: Case) -> Case:
    """Return a case whose fully masked rows are no mean, which no part knows."""
    return replace(case, empty_rows="zero") if case.empty_rows == "uniform" else case


def splits(keys: int, count: int, seed: int) -> list[list[np.ndarray]]:
    """Return random splits of keys: into one to four pieces, uneven and empty ones, unordered."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ends = np.sort(rng.integers(0, keys + 1, rng.integers(0, 4)))
        found.append(np.split(rng.permutation(keys), ends))
    return found


def even_split(keys: int, seed: int, sizes=SIZES) -> list[np.ndarray]:
    """Return a random split into pieces of these sizes; the last one has what is left."""
    return np.split(np.random.default_rng(seed).permutation(keys), np.cumsum(sizes)[:-1])


def pieces(case: Case, dtype_name: str, split: list[np.ndarray], inputs=None) -> list[dict]:
    """Return the pieces of a call, each with its keys, their cells and what else it needs."""
    _, key, value = case.inputs(dtype_name) if inputs is None else inputs
    numbers = case.numbers(dtype_name)
    del numbers["empty_rows"]
    found = []
    for columns in split:
        piece = {"key": key[:, :, columns], "value": value[:, :, columns]} | numbers
        if case.mask is not None:
            piece["mask"] = allow(case.allowed()[..., columns])
        if "bias" in numbers and numbers["bias"].shape[-1] > 1:
            piece["bias"] = numbers["bias"][..., columns]
        found.append(piece)
    return found


def log_sum_exps(case: Case, dtype_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithm of each row's sum of exp(score), exact and naive."""
    exact, rough = (steps["masked_scores"] for steps in case.expected(dtype_name))
    return reference.log_sum_exp(exact), naive.log_sum_exp(rough)


def check_merged(got: dict, case: Case, dtype_name: str, what: str) -> None:
    """Check output and log-sum-exp of a merged part against the oracle's of the whole call."""
    exact, rough = (steps["output"] for steps in case.expected(dtype_name))
    check_dtype(got["output"], rough.dtype, f"output {what}")
    compare(got["output"], exact, rough, f"output {what}", MERGED)
    exact, rough = log_sum_exps(case, dtype_name)
    for name in ("sums", "maximum", "total", "lse"):
        check_dtype(got[name], rough.dtype, f"{name} {what}")
    compare(got["lse"], exact, rough, f"log-sum-exp {what}", MERGED)


def check_merged_gradients(
    subject: Subject, case: Case, dtype_name: str, split: list[np.ndarray], what: str, inputs=None,
    of=("output", "lse"),
) -> None:  # fmt: skip
    """Check the gradients of a split call's output and log-sum-exp against the whole call's."""
    whole, numbers = case.inputs(dtype_name), case.numbers(dtype_name)
    wide = "float64" if dtype_name == "float64" else "float32"
    lse = normal(9, *case.shape.call[:3], dtype_name=wide)
    grads = {"output": case.grad(dtype_name) * ("output" in of), "lse": lse}
    call = (*whole, grads["output"])
    options = {"allowed": case.allowed(), "grad_lse": lse} | numbers
    exact, rough = expected.gradients(*call, **options)
    more = expected.cancelled(*call, **options)
    given = pieces(case, dtype_name, split, inputs)
    got = gathered(
        subject.merged_gradients(whole[0], given, {n: grads[n] for n in of}), exact, split
    )
    for name in exact:
        check_dtype(got[name], rough[name].dtype, f"gradient of {name} {what}")
        words = f"gradient of {name} {what}"
        compare(got[name], exact[name], rough[name], words, MERGED, more[name])


def gathered(found: dict, exact: dict, split: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return gradients by whole arrays, of which `merged_gradients` gave one a piece."""
    names = found.keys() & {"key", "value", "bias"}
    return found | {name: _whole(found[name], name, exact[name].shape, split) for name in names}


def _whole(parts: list[np.ndarray], name: str, shape: tuple, split: list[np.ndarray]) -> np.ndarray:
    """Return the gradient by a whole array: put together, or the sum where all have the same."""
    axis = 3 if name == "bias" else 2
    axis -= 4 - len(shape)
    if shape[axis] == 1 and name == "bias":
        total = np.sum([part.astype(np.float64) for part in parts], axis=0)
        return total.astype(parts[0].dtype)
    order = np.argsort(np.concatenate(split))
    return np.take(np.concatenate(parts, axis), order, axis)


def wide(dtype_name: str) -> np.dtype:
    """Return the dtype of a part for inputs of a dtype."""
    return dtype("float64" if dtype_name == "float64" else "float32")
