"""What the oracle has worked out is kept by content, and nobody can spoil it."""

import numpy as np
import pytest

from conformance.oracle import memo


@pytest.fixture
def asked():
    """Return a remembered function, and the list of what it was really asked."""
    calls = []

    @memo.remembered
    def double(x, **options):
        calls.append((x, options))
        return {"output": 2 * x}, {"output": 2.0 * x}

    return double, calls


def test_equal_content_is_worked_out_once(asked):
    double, calls = asked
    first, second = (double(np.arange(3), allowed=None, bias=np.ones(2)) for _ in range(2))
    assert len(calls) == 1
    assert (first[0]["output"] == [0, 2, 4]).all() and first[1]["output"] is second[1]["output"]


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([0, 1, 3])},
        {"x": np.arange(3.0)},
        {"x": np.arange(3)[None]},
        {"scale": 1.0},
        {"bias": np.zeros(2)},
    ],
    ids=["numbers", "dtype", "shape", "option", "array_option"],
)
def test_other_content_is_another_question(asked, other):
    double, calls = asked
    double(**{"x": np.arange(3), "bias": np.ones(2)})
    double(**{"x": np.arange(3), "bias": np.ones(2)} | other)
    assert len(calls) == 2


def test_what_is_remembered_cannot_be_written_to(asked):
    double, _ = asked
    exact, _ = double(np.arange(3))
    with pytest.raises(ValueError, match="read-only"):
        exact["output"][0] = 1
    exact.pop("output")  # a dict of one's own
    assert "output" in double(np.arange(3))[0]


def test_the_oldest_answers_are_forgotten(asked, monkeypatch):
    monkeypatch.setattr(memo, "MOST", 2)
    double, calls = asked
    for n in (1, 2, 1, 3, 1, 2):  # 2 is the one that was not asked again in time
        double(np.arange(n))
    assert [len(x) for x, _ in calls] == [1, 2, 3, 2]
