"""What the project's own tests share: texts without a clause, and few programs of JAX."""

import pytest

from conformance.oracle.tolerance import LEDGER
from conformance.runs.mappings import few_mappings

__all__ = ["few_mappings"]

QUICKLY = "jax_disable_most_optimizations"  # of machine code; XLA still rewrites what is computed


@pytest.fixture(autouse=True)
def no_clause():
    """Close the ledger, so that a text begins with the tensor and not with an earlier clause."""
    LEDGER.open("")


@pytest.fixture(scope="module")
def compiles_quickly():
    """Compile in half the time; for small arrays, because programs take longer to run."""
    jax = pytest.importorskip("jax")
    jax.config.update(QUICKLY, True)
    yield
    jax.config.update(QUICKLY, False)
