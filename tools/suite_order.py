"""A pytest plugin: the cases that tell most come first, for a run that may be cut off.

First one case of each test, then the others, then those that call torch.compile or jax.jit on
purpose: compiling takes seconds a case. How many cases there are goes to the file that `TOTAL`
names in the environment.
"""

import os
from pathlib import Path

import pytest

TOTAL = "SUITE_ORDER_TOTAL"


@pytest.hookimpl(trylast=True)  # after the suite has left out what was not asked for
def pytest_collection_modifyitems(items: list) -> None:
    path = Path(os.environ.get(TOTAL, os.devnull))
    if not path.exists():  # a run that goes on behind a crash collects fewer
        path.write_text(str(len(items)), "utf-8")
    items[:] = ordered(items)


def ordered(items: list) -> list:
    """Return pytest's items by rank; within one rank they keep their order."""
    met: set = set()
    ranks = []
    for item in items:
        ranks.append(2 if compiles(item) else 1 if item.function in met else 0)
        met.add(item.function)
    return [
        item for rank in (0, 1, 2) for item, own in zip(items, ranks, strict=True) if own == rank
    ]


def compiles(item) -> bool:
    """Whether a case compiles on purpose, as its name says."""
    return "compil" in item.name
