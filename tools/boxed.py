"""A child process in a time box: it and all that it started are ended when the box is over."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE = 5.0  # seconds between asking a child to end and ending it


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, whether its box was over, how long it took."""

    status: int
    cut: bool
    seconds: float


def run(
    command: list[str],
    seconds: float,
    *,
    cwd: Path,
    env: dict[str, str],
    log: Path,
    tick: Callable[[float], object] = lambda passed: None,
) -> Ended:
    """Run a command for at most `seconds`, `GRACE` more where it does not listen.

    Its output goes to `log`; `tick` is called about once a second with the seconds that passed.
    Whatever interrupts this process ends the child first.
    """
    start = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        own = {"start_new_session": True} if os.name == "posix" else {}
        child = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL, **own
        )
        cut = False
        try:
            while child.poll() is None and not cut:
                left = seconds - (time.monotonic() - start)
                try:
                    child.wait(max(min(left, 1.0), 0.01))
                except subprocess.TimeoutExpired:
                    tick(time.monotonic() - start)
                cut = child.poll() is None and time.monotonic() - start >= seconds
        finally:
            end(child)
    return Ended(child.returncode, cut, time.monotonic() - start)


def end(child: subprocess.Popen, grace: float = GRACE) -> None:
    """End a child and its group: first by asking, then by force."""
    if child.poll() is None:
        _send(child, "SIGTERM")
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    _send(child, "SIGKILL")  # whatever of its group is still there
    child.wait()


def _send(child: subprocess.Popen, name: str) -> None:
    try:
        if os.name == "posix":
            os.killpg(child.pid, getattr(signal, name))
        elif child.poll() is None:
            child.terminate()
    except (ProcessLookupError, PermissionError):
        pass  # nobody of the group is left
