"""Diagnosis of a wrong answer: named alternatives to the contract, tried until one explains it.

Libraries differ in few ways, and each has a name here. A failure message and a report say which of
them an answer is; `docs/atlas.md` is written from these names.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ..mask_spec import Spec, conjuncts
from ..oracle import reference
from .recorded import RecordedCall, clean

NAMES = {
    "unmasked": "the mask ignored",
    "inverted": "the mask inverted",
    "transposed": "the mask with queries and keys swapped",
    "first-sample": "the first sample's mask for every sample",
    "no-causal": "the causal part of the mask ignored",
    "only-causal": "all but the causal part of the mask ignored",
    "top-left": "queries and keys starting together",
    "bottom-right": "queries as the last positions",
    "one-more": "one key more than is allowed",
    "one-less": "one key less than is allowed",
    "mean": "the mean over all keys in a fully masked row",
    "nan": "NaN in a fully masked row",
    "zero": "0 in a fully masked row",
    "unmasked-row": "every key allowed in a fully masked row",
    "poisoned": "NaN or inf from a hidden key or value",
    "forgiven": "a number in spite of NaN or inf in an allowed key or value",
    "shape": "an array of another shape",
    "dtype": "an array of another dtype",
    "no-bias": "the bias ignored",
    "unscaled": "no scale",
    "scale-d": "a scale of 1 / D",
    "scale-d-v": "a scale of 1 / sqrt(D_v)",
    "default-scale": "the default scale instead of the given one",
    "tiled": "query head h reading key head h mod H_kv",
    "softcap-last": "the softcap after the bias",
    "no-softcap": "the softcap ignored",
}

BESIDE_NAN = ("forgiven", "poisoned")
EMPTY_ROWS = ("mean", "nan", "zero", "unmasked-row")


Named = Iterator[tuple[str, Callable[[], np.ndarray]]]


def candidates(call: RecordedCall) -> Named:
    """Yield every alternative that differs from the contract's answer to this call."""
    if not call.aligned:
        yield from _alignments(call)
        return
    yield from _of_empty_rows(call)
    yield from _of_nonfinite(call)
    yield from _of_masks(call)
    yield from _of_the_formula(call)


def _alignments(call: RecordedCall) -> Named:
    """Yield the readings of a call that leaves open where its queries start."""
    (_, _, T, S), mask = call.sizes, call.options["mask"]
    for policy in ("zero", "uniform", "nan"):
        yield "top-left", partial(call.answer, call.allowed(query_offset=0), empty_rows=policy)
        yield (
            "bottom-right",
            partial(call.answer, call.allowed(query_offset=S - T), empty_rows=policy),
        )
    yield "unmasked", lambda: call.answer(np.ones_like(call.allowed()))
    yield from _parts(call, mask)


def _of_empty_rows(call: RecordedCall) -> Named:
    """Yield what libraries return for a fully masked row."""
    allowed, finite = call.allowed(), clean(call)
    empty = np.asarray(~allowed.any(-1, keepdims=True))
    if not empty.any():
        return
    for name, policy in (("mean", "uniform"), ("nan", "nan"), ("zero", "zero")):
        yield name, partial(finite.answer, allowed, empty_rows=policy)
    yield "unmasked-row", lambda: finite.answer(allowed | empty)
    token = np.any(empty, 1, keepdims=True)  # a last projection spreads NaN to all heads
    yield "nan", lambda: np.where(token, np.nan, finite.answer(allowed))


def _of_nonfinite(call: RecordedCall) -> Named:
    """Yield other results of NaN and inf in the inputs."""
    if not all(np.isfinite(x.astype(np.float64)).all() for x in call.inputs):
        yield "forgiven", lambda: clean(call).answer(call.allowed())
        yield "poisoned", lambda: _poisoned(call)


def _of_masks(call: RecordedCall) -> Named:
    """Yield other readings of the mask."""
    (_, _, T, S), options = call.sizes, call.options
    allowed, finite = call.allowed(), clean(call)
    if not allowed.all():
        yield "unmasked", lambda: finite.answer(np.ones_like(allowed))
        for policy in ("zero", "nan", "uniform"):
            yield "inverted", partial(finite.answer, ~allowed, empty_rows=policy)
        yield "first-sample", lambda: finite.answer(np.broadcast_to(allowed[:1], allowed.shape))
        if T == S:
            yield "transposed", lambda: finite.answer(allowed.swapaxes(2, 3))
    if isinstance(options.get("mask"), Spec):
        yield from _parts(call, options["mask"])
        offset = 0 if options.get("query_offset") is None else np.asarray(options["query_offset"])
        yield "top-left", lambda: finite.answer(call.allowed(query_offset=0))
        yield "bottom-right", lambda: finite.answer(call.allowed(query_offset=S - T))
        yield "one-more", lambda: finite.answer(call.allowed(query_offset=offset + 1))
        yield "one-less", lambda: finite.answer(call.allowed(query_offset=offset - 1))


def _of_the_formula(call: RecordedCall) -> Named:
    """Yield the formula with a term or a factor left out or changed."""
    (_, H, _, D), (_, H_kv, _, D_v) = call.inputs[0].shape, call.inputs[2].shape
    allowed, finite, options = call.allowed(), clean(call), call.options
    if options.get("bias") is not None:
        yield "no-bias", lambda: finite.answer(allowed, bias=None)
    if options.get("softcap") is not None:
        yield "no-softcap", lambda: finite.answer(allowed, softcap=None)
        yield "softcap-last", lambda: _capped_last(finite, allowed)
    for name, scale in (("unscaled", 1.0), ("scale-d", 1 / D), ("scale-d-v", D_v**-0.5)):
        yield name, partial(finite.answer, allowed, scale=scale)
    if options.get("scale") is not None:
        yield "default-scale", lambda: finite.answer(allowed, scale=None)
    if H_kv != H:
        tiled = [np.tile(x, (1, H // H_kv, 1, 1)) for x in finite.inputs[1:]]
        yield "tiled", lambda: RecordedCall((finite.inputs[0], *tiled), options).answer(allowed)


def _parts(call: RecordedCall, spec: Spec) -> Named:
    """Yield an `&` without its causal parts, and with nothing else."""
    offset = call.options.get("query_offset")
    for name, causal in (("no-causal", False), ("only-causal", True)):
        kept = [part for part in conjuncts(spec) if (part.kind == "causal") == causal]
        if kept and len(kept) < len(conjuncts(spec)):
            allowed = [reference.allowed(part, call.sizes, offset) for part in kept]
            for policy in ("zero", "nan", "uniform"):
                yield name, partial(clean(call).answer, np.all(allowed, axis=0), empty_rows=policy)


def _poisoned(call: RecordedCall) -> np.ndarray:
    """Return the right answer with the non-finite numbers of the output."""
    output = np.asarray(call.output).astype(np.float64)
    return np.where(np.isfinite(output), call.right(), output)


def _capped_last(call: RecordedCall, allowed: np.ndarray) -> np.ndarray:
    query, key, value = (np.asarray(x).astype(np.float64) for x in call.inputs)
    group, cap = query.shape[1] // key.shape[1], call.options["softcap"]
    scale = call.options.get("scale")
    scale = query.shape[3] ** -0.5 if scale is None else scale
    scores = np.einsum("bhtd,bhsd->bhts", query, key.repeat(group, 1)) * scale
    bias = call.options.get("bias")
    scores = cap * np.tanh((scores + (0 if bias is None else np.float64(bias))) / cap)
    # the scores as a bias over queries of 0: the rest is attention as it always is
    zeros = RecordedCall((np.zeros_like(query), key, value), {"bias": scores})
    return zeros.answer(allowed)


def explains(output: np.ndarray, other: np.ndarray) -> bool:
    """Whether an output equals an alternative, up to rounding in its dtype; NaN equals NaN.

    This only recognises an answer: alternatives differ by far more than rounding does.
    """
    got = np.asarray(output)
    if got.shape != other.shape:
        return False
    unit = 2e-2 if got.dtype.itemsize == 2 else 2e-5
    return bool(np.allclose(got.astype(np.float64), other, rtol=unit, atol=unit, equal_nan=True))


RIGHT = "conforms"


def name_of(call: RecordedCall) -> str | None:
    """Return the name of the alternative that explains an answer, `RIGHT`, or None."""
    if call.output is None or call.output.dtype.kind not in "fV" or not call.output.size:
        return None
    if call.options.get("dropout"):  # a random answer has no name
        return None
    try:  # a call that the contract refuses has no answer
        if call.aligned and explains(call.output, call.right()):
            return RIGHT
        plain = clean(call).answer(call.allowed())
        for name, answer in candidates(call):
            other = answer()
            blind = call.aligned and name not in BESIDE_NAN and explains(plain, other)
            if not blind and explains(call.output, other):
                return name
    except (ValueError, IndexError, TypeError, ArithmeticError):
        return None
    return None


def first_name(calls: list[RecordedCall]) -> str | None:
    """Return the alternative that explains a test's calls; None if it does not explain them all.

    The test may have failed by another call than the one that is explained.
    """
    names = [name_of(call) for call in calls]
    wrong = [name for name in names if name != RIGHT]
    return None if None in wrong else next(iter(wrong), None)
