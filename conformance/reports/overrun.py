"""The message for a process that its time limit has ended: where it was."""

import re
from pathlib import Path

FRAME = re.compile(r'File "(.*)", line (\d+) in (\S+)')


def stack(notes: str | Path, worker: str) -> Path:
    """Return the file to which a worker, or the one process, writes where it was."""
    return Path(notes, f"{worker or 'alone'}.stack")


def overrun(notes: str | Path, seconds: float, worker: str = "") -> str:
    """Return the message for a process that its limit has ended, "" if none was."""
    path = stack(notes, worker)
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    if not text:
        return ""
    path.unlink()
    main = text.rpartition("most recent call first")[2]  # the first thread stands last
    frame = FRAME.search(main)
    where = f", at {frame[1]}, line {frame[2]}, in {frame[3]}" if frame else ""
    if "in wait_for_answer\n" in main:
        where = " from the program; does it flush its output after every line?"
    return f"no answer within {seconds:g} s (--timeout){where}"
