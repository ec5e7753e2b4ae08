"""How the project's own tests use JAX: few programs are kept, and some are compiled quickly."""

import sys
from pathlib import Path

import pytest

MAPPINGS = Path("/proc/self/maps")  # Linux only
MANY = 2**14  # a process gets 65,530, and every program that JAX compiles holds several
QUICKLY = "jax_disable_most_optimizations"  # of machine code; XLA still rewrites what is computed


@pytest.fixture(autouse=True, scope="module")
def few_mappings():
    """Forget the programs that JAX compiled when there are many: without a mapping it aborts."""
    yield
    if "jax" in sys.modules and MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MANY:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="module")
def compiles_quickly():
    """Compile in half the time; for small arrays, because programs take longer to run."""
    jax = pytest.importorskip("jax")
    jax.config.update(QUICKLY, True)
    yield
    jax.config.update(QUICKLY, False)
