"""How the project's own tests use JAX: programs are compiled quickly, and few are kept at a time."""

import sys
from pathlib import Path

import pytest

MAPPINGS = Path("/proc/self/maps")  # Linux only
MANY = 2**14  # a process gets 65,530, and every program that JAX compiles holds several
QUICKLY = "jax_disable_most_optimizations"  # of machine code; XLA still rewrites what is computed


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Compile without optimizations, a third of the time: the suite has programs as users get them.

    Programs are forgotten when there are many, because without a mapping JAX aborts.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        yield
        return
    jax.config.update(QUICKLY, True)
    yield
    jax.config.update(QUICKLY, False)
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()
