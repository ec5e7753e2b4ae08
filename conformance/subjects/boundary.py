"""How an adapter is called: arrays that it is given stay as they are, its answers are copied."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from ..oracle.tolerance import Differs, same
from .native import NUMPY, NativeArrays
from .protocol import NotOffered


def ask(native: NativeArrays, take: Callable, function: Callable, /, *args, **options):
    """Call an adapter with arrays of its framework, and `take` what it answers.

    An answer is copied, for the adapter may use its arrays again. Warnings of its framework are
    silenced. An AssertionError inside the adapter is an error, and not a failed clause.
    """
    call = args, options
    given = {id(array): array for array in arrays((*args, *options.values()))}
    before = {name: array.copy() for name, array in given.items()}
    dtype = next((x.dtype.name for x in given.values() if "float" in x.dtype.name), "float32")
    with warnings.catch_warnings(), np.errstate(all="ignore"), native.scope(dtype):
        warnings.simplefilter("ignore")
        handed = {name: native.array(array) for name, array in given.items()}
        args, options = (crossed(x, handed) for x in (args, options))
        try:
            found = take(native, function(*args, **options))
        except Differs:
            raise
        except AssertionError as error:
            raise RuntimeError(f"AssertionError: {error}") from error
        after = {name: native.numpy(array) for name, array in handed.items()}
    for name, array in after.items():
        if array.tobytes() != before[name].tobytes():
            names = [own for id, own in named(bound(function, *call)) if id == name]
            changed = "`, `".join(names)
            same(array, before[name], f"your function changed its input `{changed}` in place")
    return found


def bound(function: Callable, args: tuple, options: dict) -> Mapping[str, Any]:
    """Return what a function is given by the names of its own parameters, where it has some."""
    try:
        return signature(function).bind(*args, **options).arguments
    except (TypeError, ValueError):  # such as a function in C
        return {"inputs": args} | options


def named(given: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield the id and the name of each thing that is given, those in a tuple or a dict too."""
    for name, value in given.items():
        if isinstance(value, tuple):
            value = {f"{name}[{n}]": one for n, one in enumerate(value)}
        if isinstance(value, Mapping):
            yield from named(value)
        else:
            yield id(value), name


def arrays(given: Iterable) -> Iterator[np.ndarray]:
    """Yield the arrays of a call, those in a dict too."""
    for value in given:
        if isinstance(value, Mapping):
            yield from arrays(value.values())
        elif isinstance(value, np.ndarray):
            yield value


def crossed(given: Any, handed: dict[int, Any]) -> Any:
    """Return what is given with the framework's arrays; one that is given twice stays one."""
    if isinstance(given, Mapping):
        return {name: crossed(value, handed) for name, value in given.items()}
    if isinstance(given, tuple):
        return tuple(crossed(value, handed) for value in given)
    return handed.get(id(given), given)


def one(native: NativeArrays, found: Any) -> np.ndarray:
    """Take an array."""
    return native.take(found)


def pair(native: NativeArrays, found: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Take an output and weights, or None for these."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Differs(f"an answer must be an output and weights: got {type(found).__name__}")
    output, weights = found
    return native.take(output), None if weights is None else native.take(weights)


def two(native: NativeArrays, found: Any) -> list[np.ndarray]:
    """Take heads of queries and of keys."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Differs(f"an answer must be query and key: got {type(found).__name__}")
    return [native.take(heads) for heads in found]


def by_name(native: NativeArrays, found: Any) -> dict[str, np.ndarray]:
    """Take a dict of arrays."""
    if not isinstance(found, Mapping):
        raise Differs(f"an answer must be a dict of arrays: got {type(found).__name__}")
    return {name: native.take(array) for name, array in found.items()}


class PluggedDecoding:
    """A decoding of an adapter: `feed` takes tokens, the rest is what the adapter has."""

    def __init__(self, name: str, native: NativeArrays, own: Any):
        if not hasattr(own, "feed"):
            raise Differs(f"a decoding has `feed`: got {type(own).__name__}")
        self.name, self.native, self.own = name, native, own

    def feed(self, x: np.ndarray, **options) -> np.ndarray:
        if options:
            raise NotOffered(f"{self.name} does not offer {', '.join(options)} in decoding")
        return ask(self.native, one, self.own.feed, x)

    def __getattr__(self, attribute: str):
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        if not hasattr(self.own, attribute):
            raise NotOffered(f"{self.name} does not offer {attribute} in decoding")
        found = getattr(self.own, attribute)
        if callable(found):
            return partial(ask, self.native, self._taken, found)
        return (NUMPY if isinstance(found, list | np.ndarray) else self.native).take(found)

    def _taken(self, native: NativeArrays, found: Any) -> Any:
        """Take a branch of this decoding, or an array."""
        branch = hasattr(found, "feed")
        return PluggedDecoding(self.name, native, found) if branch else native.take(found)
