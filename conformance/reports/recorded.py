"""Recorded calls of attention: inputs, options and output; and the contract's answer to them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..mask_spec import Spec, positional
from ..oracle import naive, reference

RECORDED = 8  # calls of one test
LARGEST = 10**5  # cells of a call that the oracle's loops get through in a moment


@dataclass
class RecordedCall:
    """One call of attention: what a subject was given, and what it returned."""

    inputs: tuple[np.ndarray, ...]
    options: dict = field(default_factory=dict)
    output: np.ndarray | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        query, key = self.inputs[:2]
        return (*query.shape[:3], key.shape[2])

    def allowed(self, **offset) -> np.ndarray:
        """Return the allowed keys of each query: bool (B, H, T, S). A bias of -inf hides.

        `query_offset` takes the place of the call's own.
        """
        at = offset.get("query_offset", self.options.get("query_offset"))
        allowed = reference.allowed(self.options.get("mask"), self.sizes, at)
        bias = self.options.get("bias")
        if bias is None:
            return allowed
        return allowed & ~np.isneginf(np.asarray(bias).astype(np.float64))

    def right(self) -> np.ndarray:
        """Return the contract's answer in float64: NaN where an allowed key is non-finite."""
        allowed, (_, key, value) = self.allowed(), self.inputs
        group = self.sizes[1] // key.shape[1]
        nonfinite = [~np.isfinite(x.astype(np.float64)).all(-1) for x in (key, value)]
        keys = (nonfinite[0] | nonfinite[1]).repeat(group, 1)[:, :, None]
        is_nan = np.asarray((allowed & keys).any(-1))
        return np.where(is_nan[..., None], np.nan, clean(self).answer(allowed))

    def answer(self, allowed: np.ndarray, **changes) -> np.ndarray:
        """Return what the formula gives in float64, with some of the options changed."""
        names = ("bias", "scale", "softcap", "empty_rows")
        options = {n: self.options[n] for n in names if self.options.get(n) is not None} | changes
        with np.errstate(all="ignore"):
            inputs = (np.asarray(x).astype(np.float64) for x in self.inputs)
            if options.get("bias") is not None:
                options["bias"] = np.asarray(options["bias"]).astype(np.float64)
            return naive.attention(*inputs, allowed=allowed, **options)["output"]

    @property
    def aligned(self) -> bool:
        """Whether the contract says where queries start; it refuses a call that leaves it open."""
        spec, (_, _, T, S) = self.options.get("mask"), self.sizes
        is_told = self.options.get("query_offset") is not None or T == S
        return is_told or not (isinstance(spec, Spec) and positional(spec))


def clean(call: RecordedCall) -> RecordedCall:
    """Return the call with every non-finite number of its keys and values replaced."""
    query, *others = call.inputs
    return RecordedCall(
        (query, *(np.nan_to_num(x, posinf=0, neginf=0) for x in others)), call.options
    )


def watch(subject) -> None:
    """Record a test's first calls of attention as `subject.calls`."""
    watched = "calls" in vars(subject)
    subject.calls = []
    if watched:
        return
    for method in ("attention", "steps", "blocked"):
        try:
            original = getattr(subject, method)
        except Exception:  # not offered
            continue
        setattr(subject, method, _recording(subject, original))


def _recording(subject, original: Callable) -> Callable:
    def call(*inputs, **options):
        answer = original(*inputs, **options)
        output = answer.get("output") if isinstance(answer, dict) else answer
        cells = math.prod(inputs[0].shape[:-1]) * inputs[1].shape[-2]
        if len(subject.calls) < RECORDED and cells <= LARGEST:
            subject.calls.append(RecordedCall(inputs, options, np.asarray(output)))
        return answer

    return call
