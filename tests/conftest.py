"""What the project's own tests share: texts without a clause, few programs of JAX, a clock."""

from collections import Counter

import pytest

from conformance.oracle.tolerance import LEDGER
from conformance.runs.mappings import few_mappings

__all__ = ["few_mappings"]

SECONDS: Counter[str] = Counter()  # by file, of all processes
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


def pytest_runtest_logreport(report):
    SECONDS[report.nodeid.partition("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter, config):
    """Say which files take the time, where pytest says which tests do."""
    if slowest := config.getoption("durations"):
        terminalreporter.section(f"slowest {slowest} files")
        for file, seconds in SECONDS.most_common(slowest):
            terminalreporter.write_line(f"{seconds:.2f}s {file}")
