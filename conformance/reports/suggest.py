"""The message for a name that does not exist: the names that do, or the nearest of many."""

from collections.abc import Iterable
from difflib import get_close_matches

MANY = 30


def must_be_one_of(what: str, names: Iterable[str], got: str) -> str:
    """Return a refusal's text.

    >>> must_be_one_of("--backend", ["numpy", "torch", "jax"], "tensorflow")
    '--backend must be one of numpy, torch, jax: got tensorflow'
    >>> must_be_one_of("--clause", [f"EMPTY-{i}" for i in range(99)], "empty-17")
    '--clause must be one of EMPTY-17, EMPTY-7, EMPTY-1, ...: got empty-17'
    """
    shown = list(names)
    if len(shown) > MANY:
        by_lower = {name.lower(): name for name in shown}
        near = get_close_matches(got.lower(), by_lower, n=3, cutoff=0.4)
        shown = [*([by_lower[name] for name in near] or shown[:MANY]), "..."]
    return f"{what} must be one of {', '.join(shown)}: got {got}"
