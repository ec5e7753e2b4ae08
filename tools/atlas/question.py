"""A question to an attention library: one call, small enough to follow by hand, and its answers.

Every reading that a library is known to have is a named alternative, and its answer is computed by
the suite's own formula. What a library gave is recognised by the alternative that reproduces it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from conformance.mask_spec import allow
from conformance.oracle import naive
from conformance.reports.diagnosis import NAMES, explains
from conformance.reports.recorded import RecordedCall

from .numbers import USUAL

OWN_NAMES = {
    "refused": "an error instead of an answer",
    "attend": "True is what may be seen",
    "hide": "True is what is hidden",
    "added": "the mask's numbers added to the scores",
    "cast": "every number but 0 read as True, what may be seen",
    "cast, hidden": "every number but 0 read as True, what is hidden",
    "right": "what the formula gives",
    "key padding": "a row a sample: (B, S)",
    "queries by keys": "a row a query: (T, S)",
    "heads": "the first axis is the heads: (H, T, S)",
    "samples": "the first axis is the samples: (B, T, S)",
    "both": "each does its part",
    "only the mask": "the other one ignored",
    "only the flag": "the mask ignored",
    "only the bias": "the mask ignored",
    "neither": "both ignored",
    "NaN": "NaN in place of an answer",
    "key 0 only": "every query sees the first key and no other",
    "finite fill": "the mean, and the scores get a gradient",
    "S times": "a finite fill's gradients S times too large: backwards a weight is 1, not 1 / S",
    "unchanged": "the same output either way",
    "before": "weights as they were before dropout",
    "after": "weights that dropout has zeroed and scaled",
    "after, unscaled": "weights that dropout has zeroed, and nothing scaled",
    "empty": "an empty result of the right shape",
    "sums stall": "a sum in 16 bits that stops growing",
    "n back": "so many keys before the query's own, which is allowed beside them",
    "n keys": "so many keys, the query's own among them",
    "n on either side": "so many keys before the query's own, and so many after it",
    "from position 0": "the first chunk starts at position 0, padding or not",
    "from the first token": "the first chunk starts where the padding ends",
    "-inf": "minus infinity, the logarithm of a sum of nothing",
    "finite": "the number that hides, -0.7 times the largest float",
    "block mean": "the mean over a block of 128 keys, of which zeros fill up the last",
    "base 2": "the logarithm to base 2",
    "halves": "feature i with feature i + D/2",
    "interleaved": "feature 2i with feature 2i + 1",
    "halves, backwards": "feature i with feature i + D/2, turned the other way",
    "last slot": "the last slot overwritten",
    "first slot": "the first slot overwritten",
    "grown": "a cache that has grown",
    "dropped": "the new token not stored",
}

Answers = list[tuple[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class OwnMask:
    """Which keys are allowed, to be handed over as the library's own kind of mask."""

    allowed: np.ndarray


@dataclass(frozen=True, eq=False)
class Question:
    """One call and the answers that are known.

    `how` names the way it is asked in `ask.py`; `given` is what is handed over beside the inputs,
    arrays as they are. `measure` reduces an answer to what the alternatives speak of, and `gives`
    says what an alternative gives where its numbers do not.
    """

    name: str
    theme: str
    title: str
    clause: str
    sentence: str
    inputs: tuple[np.ndarray, ...]
    given: dict
    contract: str
    answers: Callable[[], Answers]
    how: str = "attention"
    needs: tuple[str, ...] = ()
    numbers: str = f"{USUAL}."
    gives: dict[str, str] = field(default_factory=dict)
    measure: Callable[[np.ndarray], np.ndarray] = field(default=np.asarray)

    def __post_init__(self) -> None:
        arrays = [
            *self.inputs,
            *(x.allowed if isinstance(x, OwnMask) else x for x in self.given.values()),
        ]
        if any(isinstance(x, np.ndarray) and not x.flags.c_contiguous for x in arrays):
            rule = "a question's arrays must be contiguous, for some kernels go by strides"
            raise ValueError(f"{rule}: got {self.name}")

    def alternatives(self) -> Answers:
        """Return each alternative's name and answer; a refusal has no answer."""
        found = [(name, np.asarray(answer)) for name, answer in self.answers()]
        for name in [name for name, _ in found] + [self.contract]:
            meaning(name)
        return found

    def recognise(self, output: np.ndarray) -> str | None:
        """Return the alternative that reproduces an output, or None."""
        got = np.asarray(self.measure(output))
        return next((name for name, other in self.alternatives() if explains(got, other)), None)


def meaning(name: str) -> str:
    """Return what an alternative's name says; every part of a name in two parts has its own.

    >>> meaning("bottom-right, mean")
    'queries as the last positions; the mean over all keys in a fully masked row'
    """
    known = NAMES | OWN_NAMES
    if name in known:
        return known[name]
    for joint in (", ", " to "):
        parts = name.split(joint)
        if len(parts) > 1 and all(part in known for part in parts):
            return {", ": "; ", " to ": "; then "}[joint].join(known[part] for part in parts)
    raise ValueError(f"an alternative must have a name of the suite or the atlas: got {name!r}")


def reading(inputs: tuple[np.ndarray, ...], allowed=True, **options) -> np.ndarray:
    """Return what attention gives if a call is read so: what may be seen, and the other options."""
    call = RecordedCall(inputs, {"mask": allow(np.ones((1, 1, 1, 1), bool))} | options)
    return call.answer(np.broadcast_to(allowed, call.sizes))


def policies(inputs: tuple[np.ndarray, ...], allowed, before: str = "") -> Answers:
    """Return the four answers to a fully masked row, under their names."""
    empty = ~np.asarray(allowed).any(-1, keepdims=True)
    named = {"zero": "zero", "mean": "uniform", "nan": "nan"}
    found = [(n, reading(inputs, allowed, empty_rows=policy)) for n, policy in named.items()]
    found.append(("unmasked-row", reading(inputs, allowed | empty)))
    return [(before + name, answer) for name, answer in found]


def gradients(inputs: tuple[np.ndarray, ...], grad: np.ndarray, allowed) -> Answers:
    """Return the gradients of query, key and value, as a fully masked row shapes them.

    A NaN may reach some of the three and not the others; every such answer is "nan".
    """
    allowed = np.broadcast_to(allowed, (*inputs[0].shape[:3], inputs[1].shape[2]))
    empty = ~allowed.any(-1, keepdims=True)

    query, key, value = inputs

    def of(allowed, **options) -> np.ndarray:
        with np.errstate(all="ignore"):
            found = naive.gradients(query, key, value, grad, allowed=allowed, **options)
        return np.stack([found[name] for name in ("query", "key", "value")])

    zero = of(allowed)
    fill = of(np.ones_like(allowed), bias=np.where(allowed, 0, np.float32(-1e9)))
    finite = [
        ("zero", zero),
        ("mean", of(allowed, empty_rows="uniform")),
        ("finite fill", fill),
        ("S times", fill + (fill - zero) * (key.shape[2] - 1)),
        ("unmasked-row", of(allowed | empty)),
    ]
    lost = [np.array(which) for which in product([False, True], repeat=3) if any(which)]
    spoilt = [np.where(which[:, None, None, None, None], np.nan, zero) for which in lost]
    return finite + [("nan", answer) for answer in spoilt]
