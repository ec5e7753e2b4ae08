"""How the project's own tests use JAX: few programs are kept, and some are compiled quickly."""

import pytest

from conformance.runs.mappings import few_mappings

__all__ = ["few_mappings"]

QUICKLY = "jax_disable_most_optimizations"  # of machine code; XLA still rewrites what is computed


@pytest.fixture(scope="module")
def compiles_quickly():
    """Compile in half the time; for small arrays, because programs take longer to run."""
    jax = pytest.importorskip("jax")
    jax.config.update(QUICKLY, True)
    yield
    jax.config.update(QUICKLY, False)
