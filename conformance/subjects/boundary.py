"""How an adapter is called: arrays that it is given stay as they are, its answers are copied."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..oracle.tolerance import Differs, same
from .protocol import NotOffered


def ask(take: Callable, function: Callable, /, *args, **options):
    """Call an adapter and `take` what it answers: a copy, for it may use its arrays again.

    Warnings of its framework are silenced. An AssertionError inside the adapter is an error, and
    not a failed clause.
    """
    given = [(array, array.copy()) for array in arrays((*args, *options.values()))]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = take(function(*args, **options))
        except Differs:
            raise
        except AssertionError as error:
            raise RuntimeError(f"AssertionError: {error}") from error
    for array, before in given:
        if array.tobytes() != before.tobytes():
            same(array, before, "an array that was given, after the call")
    return found


def arrays(given: Iterable) -> Iterator[np.ndarray]:
    """Yield the arrays of a call, those in a dict too."""
    for value in given:
        if isinstance(value, Mapping):
            yield from arrays(value.values())
        elif isinstance(value, np.ndarray):
            yield value


def one(found: Any) -> np.ndarray:
    """Take an array."""
    array = np.array(found)
    if array.dtype == object:
        raise Differs(f"an answer must be an array: got {type(found).__name__}")
    return array


def pair(found: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Take an output and weights, or None for these."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Differs(f"an answer must be an output and weights: got {type(found).__name__}")
    output, weights = found
    return one(output), None if weights is None else one(weights)


def two(found: Any) -> list[np.ndarray]:
    """Take heads of queries and of keys."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Differs(f"an answer must be query and key: got {type(found).__name__}")
    return [one(heads) for heads in found]


def by_name(found: Any) -> dict[str, np.ndarray]:
    """Take a dict of arrays."""
    if not isinstance(found, Mapping):
        raise Differs(f"an answer must be a dict of arrays: got {type(found).__name__}")
    return {name: one(array) for name, array in found.items()}


class PluggedDecoding:
    """A decoding of an adapter: `feed` takes tokens, the rest is what the adapter has."""

    def __init__(self, name: str, own: Any):
        if not hasattr(own, "feed"):
            raise Differs(f"a decoding has `feed`: got {type(own).__name__}")
        self.name, self.own = name, own

    def feed(self, x: np.ndarray, **options) -> np.ndarray:
        if options:
            raise NotOffered(f"{self.name} does not offer {', '.join(options)} in decoding")
        return ask(one, self.own.feed, x)

    def __getattr__(self, attribute: str):
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        if not hasattr(self.own, attribute):
            raise NotOffered(f"{self.name} does not offer {attribute} in decoding")
        found = getattr(self.own, attribute)
        return partial(ask, self._taken, found) if callable(found) else one(found)

    def _taken(self, found: Any) -> Any:
        """Take a branch of this decoding, or an array."""
        return PluggedDecoding(self.name, found) if hasattr(found, "feed") else one(found)
