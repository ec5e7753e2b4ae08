"""Calls of attention as a subject was given them, with what came out; and the contract's answer."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..mask_spec import Spec, positional
from ..oracle import naive, reference

REMEMBERED = 8  # calls of one test


@dataclass
class Call:
    """One call of attention as a subject was given it, and what came out."""

    inputs: tuple[np.ndarray, ...]
    options: dict = field(default_factory=dict)
    output: np.ndarray | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        query, key = self.inputs[:2]
        return (*query.shape[:3], key.shape[2])

    def seen(self, offset="own") -> np.ndarray:
        """Return what may be seen: bool (B, H, T, S). A bias of -inf hides."""
        if isinstance(offset, str):
            offset = self.options.get("query_offset")
        seen = reference.allowed(self.options.get("mask"), self.sizes, offset)
        bias = self.options.get("bias")
        return seen if bias is None else seen & ~np.isneginf(np.asarray(bias).astype(np.float64))

    def right(self) -> np.ndarray:
        """Return the contract's answer in float64; whoever sees what is not finite gets NaN."""
        seen, (_, key, value) = self.seen(), self.inputs
        group = self.sizes[1] // key.shape[1]
        spoilt = [~np.isfinite(x.astype(np.float64)).all(-1) for x in (key, value)]
        sees = (seen & (spoilt[0] | spoilt[1]).repeat(group, 1)[:, :, None]).any(-1)
        return np.where(np.asarray(sees)[..., None], np.nan, clean(self).answer(seen))

    def answer(self, seen: np.ndarray, **changes) -> np.ndarray:
        """Return what the formula gives in float64, with some of the options changed."""
        names = ("bias", "scale", "softcap", "empty_rows")
        options = {n: self.options[n] for n in names if self.options.get(n) is not None} | changes
        with np.errstate(all="ignore"):
            wide = (np.asarray(x).astype(np.float64) for x in self.inputs)
            if options.get("bias") is not None:
                options["bias"] = np.asarray(options["bias"]).astype(np.float64)
            return naive.attention(*wide, allowed=seen, **options)["output"]

    @property
    def aligned(self) -> bool:
        """Whether the contract says where queries start; it refuses a call that leaves it open."""
        spec, (_, _, T, S) = self.options.get("mask"), self.sizes
        told = self.options.get("query_offset") is not None or T == S
        return told or not (isinstance(spec, Spec) and positional(spec))


def clean(call: Call) -> Call:
    """Return the call with numbers in place of what is not finite in its keys and values."""
    query, *others = call.inputs
    return Call((query, *(np.nan_to_num(x, posinf=0, neginf=0) for x in others)), call.options)


def watch(subject) -> None:
    """Have a subject remember a test's first calls of attention, as `subject.calls`."""
    watched = "calls" in vars(subject)
    subject.calls = []
    if watched:
        return
    for method in ("attention", "steps", "blocked"):
        try:
            own = getattr(subject, method)
        except Exception:  # what is not offered is not watched
            continue
        setattr(subject, method, _watched(subject, own))


def _watched(subject, own: Callable) -> Callable:
    def call(*inputs, **options):
        found = own(*inputs, **options)
        output = found.get("output") if isinstance(found, dict) else found
        if len(subject.calls) < REMEMBERED:
            subject.calls.append(Call(inputs, options, np.asarray(output)))
        return found

    return call
