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
        self.path = Path(notes or "", f"{os.getpid()}.stack")

    def begin(self) -> None:
        if self.seconds:
            self.file = self.path.open("w", encoding="utf-8")
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)

    def end(self) -> None:
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
            self.file.close()


def overrun(notes: str | Path, seconds: float) -> str:
    """Return what is to be said of a process that its limit has ended, "" where none was."""
    for path in Path(notes).glob("*.stack"):
        text = path.read_text("utf-8", "replace")
        if text:
            path.unlink()
            main = text.rpartition("most recent call first")[2]  # the first thread stands last
            frame = FRAME.search(main)
            where = f", at {frame[1]}, line {frame[2]}, in {frame[3]}" if frame else ""
            return f"no answer within {seconds:g} s (--timeout){where}"
    return ""
