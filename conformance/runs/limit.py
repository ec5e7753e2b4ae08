"""A time limit for each case: a process that gives no answer is ended, and says where it was.

The watchdog is faulthandler's: it needs no Python code to run, so that a loop inside a library is
ended too, on every operating system.
"""

import faulthandler
import os
import re
from pathlib import Path

FRAME = re.compile(r'File "(.*)", line (\d+) in (\S+)')


class Limit:
    """Ends this process when a case takes longer than so many seconds; 0 is no limit."""

    def __init__(self, seconds: float, notes: str | None):
        self.seconds = seconds if notes else 0.0
        self.path = stack(notes or "", os.environ.get("PYTEST_XDIST_WORKER", ""))

    def begin(self) -> None:
        if self.seconds:
            self.file = self.path.open("w", encoding="utf-8")
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)

    def end(self) -> None:
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
            self.file.close()


def stack(notes: str | Path, worker: str) -> Path:
    """Return the file in which a worker, or the one process, tells where it was."""
    return Path(notes, f"{worker or 'alone'}.stack")


def overrun(notes: str | Path, seconds: float, worker: str = "") -> str:
    """Return what is to be said of a process that its limit has ended, "" where none was."""
    path = stack(notes, worker)
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    if not text:
        return ""
    path.unlink()
    main = text.rpartition("most recent call first")[2]  # the first thread stands last
    frame = FRAME.search(main)
    where = f", at {frame[1]}, line {frame[2]}, in {frame[3]}" if frame else ""
    return f"no answer within {seconds:g} s (--timeout){where}"
