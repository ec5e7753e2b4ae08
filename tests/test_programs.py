"""The programs that JAX compiles for the project's own tests; tests/conftest.py decides on them."""

import conftest
import jax
import pytest


def test_programs_are_compiled_quickly():
    assert jax.config.values[conftest.QUICKLY]


@pytest.mark.parametrize("many", [0, 2**40])
def test_many_programs_are_forgotten(monkeypatch, many):
    if not conftest.MAPPINGS.exists():
        pytest.skip("only Linux lists a process' mappings")
    monkeypatch.setattr(conftest, "MANY", many)
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    fixture = conftest.programs.__wrapped__()
    next(fixture)
    assert next(fixture, "ended") == "ended"
    assert double._cache_size() == (0 if many == 0 else 1)
    jax.config.update(conftest.QUICKLY, True)  # as the other tests of this file have it
