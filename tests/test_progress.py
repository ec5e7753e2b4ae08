"""The line that shows how far a run is: what it says, and that it is for a terminal alone."""

import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from test_command_line import EMPTY, ROOT, cli

from conformance.reports import progress
from conformance.reports.progress import ProgressLine

SUBJECTS = [SimpleNamespace(name="mine", device="cpu")]
TESTS = [f"test_it.py::test_it[mine-cpu-{clause}]" for clause in ("ATT-1-a", "ATT-1-b", "ATT-2")]


def told(line: ProgressLine, test: str, when: str = "call", failed: bool = False) -> None:
    line.pytest_runtest_logreport(SimpleNamespace(nodeid=test, when=when, failed=failed))


def test_line_tells_clauses_done_and_failed_and_the_time_left():
    line = ProgressLine(SUBJECTS)
    line.plan([*TESTS, "other.py::test_other"])
    assert line.text(0.0) == "0 of 2 clauses done, 0 failed"
    told(line, TESTS[0], "setup")
    told(line, TESTS[0])
    assert line.text(40.0) == "0 of 2 clauses done, 0 failed, 1 min 20 s left"
    told(line, TESTS[2], failed=True)
    told(line, TESTS[2], "teardown", failed=True)
    assert line.text(60.0) == "1 of 2 clauses done, 1 failed, 30 s left"
    told(line, TESTS[1], "setup")  # skipped
    told(line, TESTS[1], "teardown")
    assert line.text(60.0) == "2 of 2 clauses done, 1 failed, 0 s left"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_covers_the_one_before_and_leaves_nothing(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "21")
    progress.draw("a long line that is wider than the terminal")
    progress.draw("short")
    progress.draw("")
    first, second, third, rest = terminal.getvalue().split("\r")[1:]
    assert (first, rest) == ("a long line that is ", "")
    assert (second.rstrip(), len(second)) == ("short", 20)
    assert third == " " * 20


def test_line_is_not_written_where_there_is_no_terminal(tmp_path):
    done = cli(*EMPTY, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "clauses done" not in done.stdout
    letters = done.stdout.splitlines()[0]
    assert re.fullmatch(r"[.s]+ +\[ *\d+%\]", letters), "a log shows pytest's letters"


def in_terminal(tmp_path, *words: str, **settings: str) -> str:
    """Run the suite with a terminal of 80 columns as all its streams; return what it wrote."""
    pty = pytest.importorskip("pty", reason="only Unix has pseudo-terminals")
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-m", "conformance", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment | settings, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # Linux says so where the other end is closed
        pass
    os.close(ours)
    process.wait()
    return said.decode()


def test_terminal_shows_one_line_and_then_colours(tmp_path):
    only = ["run", "--mutant", "inverted", "--clause", "ATT-1"]
    said = in_terminal(tmp_path, *only)
    assert "\r0 of 1 clause done, 0 failed" in said
    assert re.match(r"(\r\d of 1 clause done, [^\r\n]*)+\r +\r", said), said[:2000]
    assert "\x1b[1;31mdoes not conform: ATT-1 differs\x1b[0m" in said
    plain = in_terminal(tmp_path, *only, NO_COLOR="1")
    assert "\x1b[1mdoes not conform: ATT-1 differs\x1b[0m" in plain, "bold is no colour"
    assert "31m" not in plain
