"""The programs that JAX compiles: fewer are kept, and some are compiled quickly."""

import conftest
import jax
import pytest

from conformance.runs import mappings


def test_programs_are_compiled_quickly_where_asked(request):
    assert not jax.config.values[conftest.QUICKLY]
    request.getfixturevalue("compiles_quickly")
    assert jax.config.values[conftest.QUICKLY]


@pytest.mark.skipif(not mappings.MAPPINGS.exists(), reason="only Linux lists the mappings")
@pytest.mark.parametrize(("many", "kept"), [(0, 0), (2**40, 1)])
def test_programs_are_forgotten_where_there_are_many(monkeypatch, many, kept):
    monkeypatch.setattr(mappings, "MANY", many)
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    list(mappings.few_mappings.__wrapped__())
    assert double._cache_size() == kept
