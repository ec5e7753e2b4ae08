"""A program that runs beside the suite and is written lines and read lines.

It ends when the suite does, whatever ends that: a process of its own waits for it, because the
suite's may be killed in the middle of a question.
"""

import json
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Event, Timer
from typing import Any

from ..oracle.tolerance import Differs

LONGEST = 2**30  # bytes of a line
SECONDS = 1.0  # for a program to end by itself when its input ends
START = 30.0  # for its first line
GUARD = "import os, sys; sys.stdin.read(); os.kill(int(sys.argv[1]), 9)"


class RunningProgram:
    """A running program, its messages JSON objects; whatever is wrong with them is `Differs`."""

    def __init__(self, words: list[str], folder: str):
        self.log: Any = TemporaryFile()  # noqa: SIM115 - open for as long as the program runs
        both: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            process = subprocess.Popen(words, cwd=folder, stderr=self.log, **both)
        except OSError as error:
            self.log.close()
            raise Differs(f"the program must start: got {error}") from error
        command = [sys.executable, "-I", "-S", "-c", GUARD, str(process.pid)]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE)
        self.process: Any = process
        self.end = weakref.finalize(self, _end, process, guard, self.log)

    @property
    def runs(self) -> bool:
        return self.end.alive

    def send(self, message: dict) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with suppress(OSError):  # it has ended: reading says how
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def wait_for_answer(self) -> dict:
        """Return the program's next message; `reports/overrun.py` looks for this function."""
        line = self.process.stdout.readline(LONGEST)
        if len(line) == LONGEST:
            raise self.broken(f"a line must be shorter than {LONGEST} bytes", "more")
        if not line.endswith(b"\n"):
            raise self.broken("the program must answer", self._end_of_it())
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            rule = "the program must print one JSON object a line, and all else to stderr"
            raise self.broken(rule, shown(line))
        return message

    def wait_for_hello(self) -> dict:
        """Return the program's first message; one that keeps its output is not waited for long."""
        late = Event()

        def end() -> None:
            late.set()
            self.process.kill()

        limit = Timer(START, end)
        limit.start()
        try:
            return self.wait_for_answer()
        except Differs as error:
            if late.is_set():
                rule = f"the program must print its first line in {START:g} s"
                got = "nothing; does it flush its output after every line?"
                raise self.broken(rule, got) from error
            raise
        finally:
            limit.cancel()

    def broken(self, rule: str, got: str) -> Differs:
        """End the program, and return what to raise."""
        self.end()
        return Differs(f"{rule}: got {got}")

    def _end_of_it(self) -> str:
        try:
            status = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            how = "the end of its output"
        else:
            how = f"its end {_how(status)}"
        self.log.seek(0)
        said = self.log.read().strip().rpartition(b"\n")[2]
        return f"{how}; its last words: {shown(said)}" if said else how


def shown(line: bytes) -> str:
    """Return a line that was printed as it can be quoted."""
    text = line.decode("utf-8", "backslashreplace").strip()
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def _how(status: int) -> str:
    try:
        return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _end(process: subprocess.Popen, guard: subprocess.Popen, log) -> None:
    """End a program by the end of its input, or else by force."""
    guard.kill()
    for child, seconds in ((guard, None), (process, SECONDS)):
        with suppress(OSError):
            child.stdin.close()  # type: ignore[union-attr]
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    process.stdout.close()  # type: ignore[union-attr]
    log.close()
