"""A peer under the name that it has in the atlas.

python -m conformance run --subject conformance.atlas.own:torch-sdpa=package.module:Class
"""

import warnings
from collections.abc import Callable
from typing import Any

from .ask import load


class Named:
    """An adapter that goes by a name."""

    def __init__(self, own: Any, name: str):
        self.own, self.name = own, name

    def __getattr__(self, name: str):
        return getattr(self.own, name)


def made(asked: str, kind: Callable) -> Callable:
    """Return what gives the adapter of NAME=PATH. Raises AttributeError for anything else."""
    name, equals, path = asked.partition("=")
    if not equals:
        raise AttributeError(f"a peer is NAME=PATH: got {asked}")
    with warnings.catch_warnings():  # a framework's warnings are no business of the suite's
        warnings.simplefilter("ignore")
        own = load(path)
    return lambda: kind(own, name)


def __getattr__(asked: str) -> Callable:
    return made(asked, Named)
