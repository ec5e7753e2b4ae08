"""A shard of the gate: the suite on right subjects and on mutants, in a process of its own.

    python -m tools.mutants.shard FOLDER [--quick] NAME ... [OPTIONS OF PYTEST]

Many mutants share a process, and so what the oracle has computed. The right subjects run first and
are watched: a mutant then runs on the cases that use the method which it breaks, and on no other.
Once a test has caught a mutant the test's other cases leave it alone.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import conformance
from conformance import subjects
from conformance.mutants import MUTANTS, Mutant, load, named
from conformance.mutants.mutant import Altered
from conformance.reports.plugin import PROPERTY
from conformance.subjects.stash import SUBJECTS

from .verdict import case_of, is_kill

SUITE = Path(conformance.__file__).parent
# Not run: random examples, which shrink for long, and subjects against each other.
LEFT_OUT = ("test_fuzz.py", "test_stateful.py", "test_agreement.py")
# How pytest ends where there is something to judge; that no case was found is the judge's to say.
ENDS = pytest.ExitCode
JUDGED = (ENDS.OK, ENDS.TESTS_FAILED, ENDS.NO_TESTS_COLLECTED)


def main(arguments: list[str] | None = None) -> int:
    """Run a shard; reports and progress go to the folder. Returns 0 unless pytest broke down."""
    parser = argparse.ArgumentParser("tools.mutants.shard", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="only the clauses that are named")
    parser.add_argument("names", nargs="+")
    options, rest = parser.parse_known_args(arguments)
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    mutants = [named(name) for name in options.names]
    bases = {mutant.base: subjects.load(mutant.base) for mutant in mutants}
    rest = [f"--backend={next(iter(bases))}", *rest]  # any: the plugins have subjects of their own
    if options.quick:
        return run(options.folder / "both.jsonl", Quick(options.folder, bases, mutants), rest)
    right = Rights(options.folder, bases)
    wrong = Wrongs(options.folder, mutants, right.uses)
    return run(options.folder / "right.jsonl", right, rest) or run(
        options.folder / "wrong.jsonl", wrong, rest
    )


def run(report: Path, plugin: "Chosen", rest: list[str]) -> int:
    """Run the suite with a plugin that chooses subjects and cases; options go to pytest."""
    given = [str(SUITE), f"-c{SUITE / 'pytest.ini'}", f"--rootdir={SUITE}", "--device=cpu"]
    given += [f"--ignore={SUITE / name}" for name in LEFT_OUT]
    given += [f"--report={report}", "--tb=no", "-q"]
    status = pytest.main([*given, *rest], plugins=[plugin])
    return 0 if status in JUDGED else int(status)


class Chosen:
    """A pytest plugin that runs the suite on subjects of its own choice, and says how far it is."""

    def __init__(self, folder: Path, subjects: list):
        self.folder, self.subjects = folder, subjects
        self.caught: set[tuple[str, ...]] = set()
        self.said = 0.0

    def wanted(self, function: str, clause: str) -> list:
        """Return the subjects on which a test of a clause shall run."""
        return self.subjects

    def runs(self, item: pytest.Item) -> bool:
        """Whether a case runs at all."""
        return True

    def needs(self, item: pytest.Item) -> bool:
        """Whether a case has something to show, after those that ran."""
        return self.catch(item) not in self.caught

    def catch(self, item: Any) -> tuple[str, ...]:
        """Return what a failure would show: that a clause, and a test of it, catches a subject."""
        clause = item.get_closest_marker("clause").args[0]
        return subject_of(item).name, clause, item.originalname

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc):
        mark = metafunc.definition.get_closest_marker("clause")
        clause = mark.args[0] if mark else ""
        there = metafunc.config.stash[SUBJECTS]
        there[:] = self.wanted(metafunc.function.__name__, clause)
        try:
            return (yield)
        finally:
            there.clear()  # a test that compares subjects finds no other

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        on_a_subject = (item for item in items if hasattr(subject_of(item), "capabilities"))
        items[:] = [item for item in on_a_subject if self.runs(item)]

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None  # pytest says what could not be collected
        for i, item in enumerate(session.items):
            if self.needs(item):
                # None: what an item leaves behind is torn down, whichever item comes next
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            self.say(i + 1, len(session.items))
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # around the reporter, to see what it found
    def pytest_runtest_makereport(self, item: pytest.Item):
        report = yield
        mutant = MUTANTS.get(subject_of(item).name)
        found = dict(report.user_properties).get(PROPERTY)
        if mutant and found and is_kill(mutant, found["outcome"]):
            self.caught.add(self.catch(item))
        return report

    def say(self, done: int, of: int) -> None:
        """Leave word of how far it is, at most five times a second."""
        if time.monotonic() > self.said + 0.2 or done == of:
            self.said = time.monotonic()
            word = f"{type(self).__name__} {done} {of}"
            (self.folder / "progress").write_text(word, "utf-8")


def subject_of(item: Any) -> Any:
    return item.callspec.params["subject"]


class Quick(Chosen):
    """Mutants on the cases of the clauses that they name, and right subjects beside them.

    A right subject runs on the first case of a clause, and where a mutant did not conform: it must
    conform there, or the mutant's failure proves nothing. The suite runs it on all cases.
    """

    def __init__(self, folder: Path, bases: dict, mutants: list[Mutant]):
        super().__init__(folder, [])
        self.bases = bases
        self.begun: set[tuple[str, ...]] = set()  # right subjects and clauses
        self.failed: set[tuple[str, str]] = set()  # bases and cases
        self.wrong = [(mutant, load(mutant.name)) for mutant in mutants]

    def wanted(self, function: str, clause: str) -> list:
        own = [(mutant, subject) for mutant, subject in self.wrong if clause in mutant.clauses]
        bases = dict.fromkeys(mutant.base for mutant, _ in own)
        return [*(self.bases[base] for base in bases), *(subject for _, subject in own)]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        super().pytest_collection_modifyitems(items)
        tests = {item.function: i for i, item in reversed([*enumerate(items)])}
        items.sort(key=lambda item: (tests[item.function], subject_of(item).name in self.bases))

    def needs(self, item: pytest.Item) -> bool:
        name = subject_of(item).name
        if name not in self.bases:
            return super().needs(item)
        first = self.catch(item) not in self.begun
        self.begun.add(self.catch(item))
        return first or (name, case_of(item.name, name)) in self.failed

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item):
        report = yield from super().pytest_runtest_makereport(item)
        name = subject_of(item).name
        if name not in self.bases and not report.passed:
            self.failed.add((MUTANTS[name].base, case_of(item.name, name)))
        return report

    def catch(self, item: Any) -> tuple[str, ...]:
        return super().catch(item)[:2]  # one test of a clause will do


class Rights(Chosen):
    """Right subjects on every case; `uses` then says what each case uses of its subject."""

    def __init__(self, folder: Path, bases: dict):
        super().__init__(folder, list(bases.values()))
        self.seen: set[str] = set()
        self.uses: dict[tuple[str, str], frozenset[str]] = {}
        for subject in bases.values():
            watch(subject, self.seen)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        self.seen.clear()
        try:
            return (yield)
        finally:
            subject = subject_of(item)
            case = case_of(item.name, subject.name)
            self.uses[subject.name, case] = frozenset(self.seen)


def watch(subject, seen: set[str]) -> None:
    """Enter in `seen` whatever is used of a subject, its module's functions as "module.NAME"."""
    own = type(subject)

    class Watched(own):  # type: ignore[valid-type, misc]
        def __getattribute__(self, name):
            seen.add(name)
            return super().__getattribute__(name)

    class WatchedModule(Altered):
        def __getattr__(self, name):
            seen.add(f"module.{name}")
            return super().__getattr__(name)

    subject.module = WatchedModule(subject.module, {})
    subject.__class__ = Watched


class Wrongs(Chosen):
    """Mutants on the cases that use what they break, as the right subjects have shown."""

    def __init__(self, folder: Path, mutants: list[Mutant], uses: dict):
        super().__init__(folder, [load(mutant.name) for mutant in mutants])
        self.uses = uses

    @cached_property
    def by_function(self) -> dict[tuple[str, str], set[str]]:
        """Return what all cases of a test function use, by base and function."""
        found: dict = defaultdict(set)
        for (base, case), used in self.uses.items():
            found[base, case.split("[")[0]] |= used
        return found

    def wanted(self, function: str, clause: str) -> list:
        reached = ((s, MUTANTS[s.name]) for s in self.subjects)
        return [s for s, m in reached if m.methods & self.by_function[m.base, function]]

    def runs(self, item: pytest.Item) -> bool:
        mutant = MUTANTS[subject_of(item).name]
        used = self.uses.get((mutant.base, case_of(item.name, mutant.name)), frozenset())
        return bool(mutant.methods & used)


if __name__ == "__main__":
    sys.exit(main())
