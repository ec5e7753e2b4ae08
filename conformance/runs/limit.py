"""A time limit for each case: a process without an answer is ended, and says where it was.

The watchdog is faulthandler's. It needs no Python code to run, so it also ends a loop inside a
library, on every operating system.
"""

import faulthandler
import os

from ..reports.overrun import stack


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
