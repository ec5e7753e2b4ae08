"""The suite, played in parts: what is left out and why, and what it allows: what PART-1 does.

A case of a chapter that is played must have played a call, or be left out for a reason that stands
here.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conformance.oracle import expected, tolerance

SUITE = Path(__file__).parent.parent / "conformance"
CHAPTERS = (
    "attention",
    "causal",
    "combinations",
    "empty",
    "gradients",
    "half",
    "hygiene",
    "sinks",
)
OTHERS = {  # chapters that are not played
    "agreement": "compares backends, and each of them is compared with the oracle",
    "cache": "caches are sharded by sample or by head, never by rows",
    "cache_states": "as cache",
    "cache_window": "as cache",
    "derivatives": "a ring has no forward mode, and in torch one derivative",
    "dropout": "is refused where a call is sharded",
    "errors": "calls are refused before they are shared out",
    "fuzz": "looks for new calls, each of a shape of its own",
    "heads": "calls modules",
    "layers": "calls modules",
    "masks": "asks masks; of its few calls of attention other chapters have the like",
    "multihead": "calls modules",
    "partial": "calls attention_part and merge themselves",
    "precision": "autocast is a thread's own, and JAX has none",
    "settings": "calls modules",
    "signatures": "compares two ways to write one call, and reads names",
    "small_blocks": "cuts calls of one device; `tiles` of jax_sharded.py cuts those of several",
    "stateful": "as cache",
    "transforms": "maps and exports calls, whose values are not known",
    "true_sizes": "is about the memory and the loops of one device",
    "vectors": "judges files",
    "weights": "reads and writes files",
    "weights_kept": "as weights",
    "weights_layouts": "as weights",
}
LEFT_OUT = {  # calls of the chapters that are
    "steps": "attention_steps returns the scores of all keys, which no device has",
    "dropout": "each device would draw for itself: it is refused",
    "uniform": "no device has all values to take the mean of: it is refused in a ring",
    "modules": "they attend by lines of their own, and are shared out by other tests",
    "blocked": "blocks of a call of one device; `tiles` of jax_sharded.py has those of several",
    "compiled": "torch's sharded attention refuses it; `traced` of jax_sharded.py compiles JAX's",
}
MODULES = ("MultiHeadAttention", "Transformer", "Seq2Seq")  # how their names begin


class Play:
    """Hooks of pytest that count what a backend plays, and refuse what is left out unsaid."""

    def __init__(self, adapter, module, attention, patient=True):
        self.calls: Counter[str] = Counter()
        self.patient = patient  # a case goes on where it leaves out a call
        module.attention = attention
        module.attention_steps = self.usual("steps", module.attention_steps)
        for name in module.__all__:
            if name.startswith(MODULES):
                setattr(module, name, self.usual("modules"))
        adapter.blocked = self.usual("blocked", adapter.blocked)
        adapter.small_blocks = self.usual("blocked", adapter.small_blocks)
        path, of_blocks = adapter.path, self.usual("blocked", adapter.path)
        adapter.path = lambda *told: (of_blocks if "blocked" in told else path)(*told)

    def usual(self, name: str, function: Callable | None = None) -> Callable:
        """Return a function that is not played, or that ends the case."""

        def call(*inputs, **options):
            self.leave_out(name)
            if function is None or not self.patient:
                pytest.skip(LEFT_OUT[name])
            return function(*inputs, **options)

        return call

    def leave_out(self, name: str) -> None:
        assert name in LEFT_OUT, f"no reason is listed for {name}"
        self.calls[name] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        before = self.calls.total()
        found = yield
        assert self.calls.total() > before, "nothing was played, and no reason for it is listed"
        return found

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(f"calls that were played: {self.calls['played']}")
        for name in self.calls.keys() - {"played"}:
            reason = LEFT_OUT[name]
            terminalreporter.write_line(f"calls left out: {self.calls[name]}, as {reason}")


def run(plugin: str, environment: dict[str, str], backend: str) -> int:
    """Play the chapters in a process of their own; return how many calls were played."""
    known = {path.stem.removeprefix("test_") for path in SUITE.glob("test_*.py")}
    told = {*CHAPTERS, *OTHERS}
    assert known == told, f"neither played nor left out for a reason: {known ^ told}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-p", "no:xdist"]
    command += ["--backend", backend, "--device", "cpu"]
    command += [str(SUITE / f"test_{chapter}.py") for chapter in CHAPTERS]
    child = subprocess.run(
        command, env=environment, cwd=SUITE.parent, capture_output=True, text=True, check=False
    )
    assert not child.returncode, child.stdout[-6000:] + child.stderr[-2000:]
    return int(re.search(r"calls that were played: (\d+)", child.stdout)[1])


class Merged(np.ndarray):
    """An expected gradient, which may be missed by `more` than that of one call."""

    more = 0.0

    def __array_finalize__(self, other):
        self.more = getattr(other, "more", 0.0)


def allow_merged() -> None:
    """Have the suite judge so, for the rest of this process."""
    allowance, gradients = tolerance.allowance, expected.gradients

    def allow(exact, naive, dtype, roundings=2):
        roundings = max(roundings, tolerance.MERGED)
        return allowance(exact, naive, dtype, roundings) + getattr(exact, "more", 0.0)

    def expect(*call, **options):
        exact, naive = gradients(*call, **options)
        cancelled = expected.cancelled(*call, **options)
        exact = {name: np.asarray(array).view(Merged) for name, array in exact.items()}
        for name, array in exact.items():
            array.more = cancelled.get(name, 0.0)
        return exact, naive

    tolerance.allowance, expected.gradients = allow, expect
