"""The process in which the cases run: it is started, awaited, and started again if it dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..reports.overrun import overrun
from ..reports.report import (
    FAILED,
    INTERNAL,
    INTERRUPTED,
    NOTHING,
    begun,
    enter,
    has_footer,
    results,
    trim,
)

DEATHS = 4  # cases that may end the process before the run is given up
CHILD = """
import json, sys
sys.path[:], options, words = json.loads(sys.argv[1])
from conformance.runs.session import main
main(options, words)
"""


def follow(options: dict[str, Any], words: list[str], shared: list[str]) -> tuple[int, dict, int]:
    """Run the cases; after a case that ended its process, go on in a new one.

    `shared` are the words that give the first process its workers. Return pytest's status, what
    the last process has told, and how many processes ended early.
    """
    report, notes, deaths = Path(options["report"]), Path(options["notes"]), 0
    with _terminated_gently() as running:
        while True:
            status, told = _child(options, [*words, *shared], running)
            unsure = shared and status in (FAILED, INTERNAL, NOTHING)
            broken = unsure and not has_footer(report)
            if told and not (broken or running.stopped):
                return FAILED if deaths and status == NOTHING else status, told, deaths
            if running.stopped:
                return INTERRUPTED, told, deaths
            deaths += 1
            if told:
                print("a worker has ended", file=sys.stderr)
            trim(report)
            if not told and not _enter_death(report, notes, status, options["case_timeout"]):
                return INTERNAL, told, deaths
            if deaths > DEATHS:
                print(f"a process ended {deaths} times: the run is given up", file=sys.stderr)
                return INTERNAL, told, deaths
            rest = "another process runs the other cases, and pytest's last line counts only these"
            print(rest, file=sys.stderr)
            options, shared = options | {"resume": True}, []


class _Running:
    """The process that runs, and whether this one was told to stop."""

    process: subprocess.Popen | None = None
    stopped = False

    def stop(self, *_) -> None:
        self.stopped = True
        if self.process:
            self.process.terminate()


@contextmanager
def _terminated_gently() -> Iterator[_Running]:
    """Pass a request to end on to the process that runs, and keep what it has written."""
    running = _Running()
    try:
        before = signal.signal(signal.SIGTERM, running.stop)
    except ValueError:  # not in the main thread
        yield running
        return
    try:
        yield running
    finally:
        signal.signal(signal.SIGTERM, before)


def _child(options: dict[str, Any], words: list[str], running: _Running) -> tuple[int, dict]:
    """Run pytest in a process of its own; return its status, and what it told at its end."""
    notes = Path(options["notes"])
    path = [os.path.abspath(entry) for entry in sys.path]  # the adapter may change the folder
    path += [os.getcwd()] * (os.getcwd() not in path)
    command = [sys.executable, "-c", CHILD, json.dumps([path, options, words])]
    ended = notes / "ended.json"
    ended.unlink(missing_ok=True)
    running.process = subprocess.Popen(command, env=_environment(notes))
    while True:
        try:
            status = running.process.wait()
            break
        except KeyboardInterrupt:  # the other process was interrupted too, and reports what it has
            if running.stopped:
                running.process.kill()
            running.stopped = True
    told = json.loads(ended.read_text("utf-8")) if ended.exists() else {}
    return told.get("status", status), told


def _environment(notes: Path) -> dict[str, str]:
    """Return the environment of a run: this process's own, without the settings of pytest."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # other plugins of this environment have their own options and warnings
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    kept.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(notes))  # else it writes to this folder
    kept.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a device
    if sys.flags.optimize:
        kept["PYTHONOPTIMIZE"] = str(sys.flags.optimize)
    return kept


def _enter_death(report: Path, notes: Path, status: int, seconds: float) -> bool:
    """Enter the case that ended its process as an error; return whether there is one."""
    late = overrun(notes, seconds)
    how = late or f"the process ended {_how(status)}"
    current = notes / "now.json"
    if not current.exists():
        print(f"outside a case: {how}", file=sys.stderr)
        return False
    about = json.loads(current.read_text("utf-8"))
    current.unlink()
    command = about.pop("command") + (f" --timeout {seconds:g}" if late else "")
    if about["test"] in {result["test"] for result in results(begun(report))}:
        how += " after this case"
    else:
        how += "" if late else " during this case"
        enter(report, about, how)
    where = f"{about['subject']} on {about['device']}, {about['case']}"
    print(f"\n{where}: {how}\nrun just this: {command}", file=sys.stderr)
    return True


def _how(status: int) -> str:
    try:
        return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"
