"""The benchmarks' page: what it says of the figures. What the figures are is no test's matter."""

import pytest

from benchmarks import memory
from benchmarks.__main__ import main, markdown

MACHINE = {"date": "", "cores": 2, "platform": "", "python": "", "versions": {}, "matmul_gflops": 1}
EMPTY: dict = {"machine": MACHINE, "speed": [], "memory": [], "growth": [], "compile": []}


def page(mib: dict[tuple, float]) -> list[str]:
    """Return the lines on how memory grows."""
    report = EMPTY | {"growth": memory.growth(mib)}
    return [line for line in markdown(report).splitlines() if " to " in line and "|" in line]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (2.0, 8.0, "4.0 x | linear"),
        (2.0, 2.0, "1.0 x | linear"),
        (2.0, -1.0, "-0.5 x | linear"),
        (2.0, 32.0, "16.0 x | NOT linear"),
        (0.0, 8.0, "from nothing | -"),
        (-1.0, 8.0, "from nothing | -"),
    ],
)
def test_growth_is_judged_by_a_quarter_of_the_length(before, after, shown):
    mib = {("torch", "causal", 1024, True): before, ("torch", "causal", 4096, True): after}
    assert page(mib) == [f"| torch causal T=1024 to 4096 + backward | {shown} |"]


def test_growth_compares_one_call_with_itself():
    mib = {("torch", "causal", 1024, False): 1.0, ("torch", "causal", 4096, True): 2.0}
    assert page(mib | {("jax", "causal", 16384, True): 3.0}) == []


def test_page_states_what_a_window_may_take():
    row = {"work": "numpy window T=32768", "mib": 25.0, "at_most": memory.AT_MOST["window"]}
    report = EMPTY | {"memory": [row]}
    assert "| numpy window T=32768 | 25.0 | 64 |" in markdown(report).splitlines()


def test_memory_of_a_matrix_is_seen(monkeypatch):
    numpy = memory.extra("numpy", "causal", 1024, False)
    attn = pytest.importorskip("attn_numpy")
    monkeypatch.setattr(attn, "attention", lambda *x, **o: attn.attention_steps(*x, **o).output)
    assert numpy < 4 < memory.extra("numpy", "causal", 1024, False), "1024 x 1024 floats are 4 MiB"


def test_a_word_that_matches_no_row_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "cobol"])
    assert "--only must match a row: got cobol" in capsys.readouterr().err
