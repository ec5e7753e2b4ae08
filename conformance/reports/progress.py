"""How far a run is: one line on standard error while it runs, where that is a terminal."""

import shutil
import sys
import time
from collections import defaultdict

import pytest

from .report import clause_of
from .verdict import many

PAUSE = 0.1  # seconds between two looks of the line


class ProgressLine:
    """A pytest plugin that shows one line in place of pytest's letter for each test.

    Where standard error is no terminal, pytest's letters stand. The line is written by hand: what
    rich draws hides the cursor, and an adapter that ends the process would leave it hidden.
    """

    def __init__(self, subjects: list):
        self.subjects, self.began, self.drawn = subjects, time.monotonic(), 0.0
        self.left: dict[str, set[str]] = defaultdict(set)  # tests by clause
        self.clauses: set[str] = set()
        self.failed: set[str] = set()
        self.done = 0

    def plan(self, tests: list[str]) -> None:
        for test in tests:
            if about := clause_of(test, self.subjects):
                self.left[about[1]].add(test)
        self.clauses = set(self.left)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.plan(ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self):
        """Keep pytest's count of a test, and leave out its letter."""
        category, *_ = yield
        return category, "", ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        about = clause_of(report.nodeid, self.subjects)
        if about is None:
            return
        clause = about[1]
        if report.failed:
            self.failed.add(clause)
        if report.when != "setup" and report.nodeid in self.left[clause]:
            self.left[clause].remove(report.nodeid)
            self.done += 1
        now = time.monotonic()
        if now - self.drawn > PAUSE:
            self.drawn = now
            draw(self.text(now - self.began))

    def text(self, seconds: float) -> str:
        """Return the line after so many seconds."""
        ready = sum(not self.left[clause] for clause in self.clauses)
        text = f"{ready} of {many(len(self.clauses), 'clause')} done, {len(self.failed)} failed"
        if not self.done:
            return text
        left = seconds / self.done * sum(map(len, self.left.values()))
        minutes, rest = divmod(round(left), 60)
        return f"{text}, {f'{minutes} min ' if minutes else ''}{rest} s left"

    @pytest.hookimpl(tryfirst=True)  # before pytest prints the failures
    def pytest_sessionfinish(self) -> None:
        draw("")


def draw(text: str) -> None:
    """Write over the line before; an empty text takes it away."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        end = "" if text else "\r"
        print(f"\r{text[:width]:<{width}}", end=end, file=sys.stderr, flush=True)
