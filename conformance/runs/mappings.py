"""JAX keeps each program that it compiled: a process that has no mapping left for one crashes."""

import sys
from pathlib import Path

import pytest

MAPPINGS = Path("/proc/self/maps")  # Linux only
MANY = 2**14  # a process gets 65,530, and every program that JAX compiles holds several


@pytest.fixture(autouse=True, scope="module")
def few_mappings():
    yield
    forget_programs()


def forget_programs() -> None:
    """Forget the programs that JAX compiled when there are many: without a mapping it aborts."""
    if "jax" in sys.modules and MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MANY:
        sys.modules["jax"].clear_caches()
