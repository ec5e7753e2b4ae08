"""How an adapter is called: what it is given stays as it is, and what it answers is taken over."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from .budget import same
from .subject import NotOffered


def ask(name: str, function: Callable, /, *args, **options):
    """Call an adapter and return a copy of what it answers, for it may use its arrays again.

    Its framework's warnings are no business of the suite's, and its assertions no verdict.
    """
    given = [(array, array.copy()) for array in arrays((*args, *options.values()))]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = taken_over(name, function(*args, **options))
        except AssertionError as error:
            raise RuntimeError(f"AssertionError: {error}") from error
    for array, before in given:
        same(array, before, "an array that was given, after the call")
    return found


def arrays(given: Iterable) -> Iterator[np.ndarray]:
    """Yield the arrays of a call, those in a dict too."""
    for value in given:
        if isinstance(value, Mapping):
            yield from arrays(value.values())
        elif isinstance(value, np.ndarray):
            yield value


def taken_over(name: str, found: Any) -> Any:
    """Return the suite's own copy of an answer: arrays, dicts and tuples of them, decodings."""
    if found is None:
        return None
    if isinstance(found, Mapping):
        return {key: taken_over(name, array) for key, array in found.items()}
    if isinstance(found, tuple):
        return tuple(taken_over(name, array) for array in found)
    if hasattr(found, "feed"):
        return Decoding(name, found)
    array = np.array(found)
    if array.dtype == object:
        raise TypeError(f"an answer must be an array: got {type(found).__name__}")
    return array


class Decoding:
    """A decoding of an adapter: `feed` takes tokens, the rest is what the adapter has."""

    def __init__(self, name: str, own: Any):
        self.name, self.own = name, own

    def feed(self, x: np.ndarray, **options) -> np.ndarray:
        if options:
            raise NotOffered(f"{self.name} does not offer {', '.join(options)} in decoding")
        return ask(self.name, self.own.feed, x)

    def __getattr__(self, attribute: str):
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        if not hasattr(self.own, attribute):
            raise NotOffered(f"{self.name} does not offer {attribute} in decoding")
        found = getattr(self.own, attribute)
        if callable(found):
            return partial(ask, self.name, found)
        return taken_over(self.name, found)
