"""A few of the random calls of tools/fuzz, on every run; the command takes thousands."""

import numpy as np
import pytest

import attn_numpy
from conformance.oracle import reference
from tools.fuzz import __main__ as command
from tools.fuzz import calls
from tools.fuzz.judge import allowed

CALLS = {"numpy": 120, "torch": 120, "jax": 48}


@pytest.mark.parametrize("backend", CALLS)
@pytest.mark.untyped
def test_random_calls_are_the_textbooks(backend):
    found = [text for text in command.fuzz(backend, CALLS[backend], 0) if text]
    assert not found, "\n".join(found)


def test_what_is_drawn_covers_what_may_go_wrong():
    drawn = [calls.draw(seed, 0, True, True) for seed in range(CALLS["torch"])]
    for name in ("junk", "backward", "used", "dtype"):
        values = [getattr(call, name) for call in drawn]
        assert min(map(values.count, set(values))) >= 5, name
    sizes = [call.shape for call in drawn]
    assert sum(shape.T == 1 for shape in sizes) >= 5
    assert sum(shape.H_kv < shape.H for shape in sizes) >= 10
    assert max(shape.B * shape.H * shape.T * shape.S for shape in sizes) > calls.CELLS[1]
    kinds = " ".join(map(str, drawn))
    for spec in ("causal", "padding(lengths)", "padding(hidden)", "sliding_window", "segments"):
        assert kinds.count(spec) >= 5, spec


@pytest.mark.parametrize("seed", range(40))
def test_cells_that_are_allowed_are_the_oracles(seed, monkeypatch):
    for name in ("EDGES", "EVERYDAY_EDGES"):
        monkeypatch.setattr(calls, name, (3, 5))
    monkeypatch.setattr(calls, "CELLS", (300,) * 3)
    call = calls.draw(seed, 0, True, True)
    expected = reference.allowed(call.spec, call.shape.call, call.offset)
    assert (allowed(call.spec, call.shape.call, call.offset) == expected).all(), str(call)


def _strict(monkeypatch):
    rule = lambda at: at.key < at.query  # noqa: E731
    rule.sentence, rule.arguments = "", ()
    monkeypatch.setattr(attn_numpy.masks, "_causal", rule)


def _stale(monkeypatch):
    own, kept = attn_numpy.Mask.evaluate, {}

    def evaluate(mask, at):
        key = (id(mask), type(at), np.shape(at.query), np.shape(at.key))
        return kept.setdefault(key, (mask, own(mask, at)))[1]

    monkeypatch.setattr(attn_numpy.Mask, "evaluate", evaluate)


def _leaking(monkeypatch):
    own = attn_numpy.attention
    leak = lambda q, k, v, **o: own(q, k, v, **o) + (0 * v.sum()).astype(q.dtype)  # noqa: E731
    monkeypatch.setattr(attn_numpy, "attention", leak)


def _hiding(monkeypatch):
    own = attn_numpy.attention
    monkeypatch.setattr(attn_numpy, "attention", lambda *x, **o: np.nan_to_num(own(*x, **o)))


@pytest.mark.parametrize("breaking", [_strict, _stale, _leaking, _hiding])
def test_a_broken_backend_is_found_and_its_line_finds_it_again(breaking, monkeypatch, capsys):
    breaking(monkeypatch)
    assert command.main(["--backend", "numpy", "--calls", "60"]) == 1
    lines = capsys.readouterr().out.splitlines()
    again = next(line for line in lines if line.startswith("python -m tools.fuzz "))
    assert command.main(again.split()[3:]) == 1
    assert "Differs: " in capsys.readouterr().out
