"""A run: pytest in a process of its own, and a verdict that is read from the report it wrote.

What is under test may end its process, hang, or move to another folder. So this process imports
nothing of it: it waits, goes on behind a case that ended the other process, and tells the verdict.
"""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from .limit import overrun
from .report import begun, enter, fails, has_footer, read, results, trim

HERE = Path(__file__).parent
REPORT = ".conformance/report.jsonl"
NEEDED = {name: name for name in ("numpy", "ml_dtypes", "pytest", "hypothesis")}
HELPFUL = {"jsonschema": "jsonschema", "rich": "rich", "xdist": "pytest-xdist"}
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a Linux container
RESUME = "--internal-resume"
DEATHS = 4  # cases that may end the process before the run is given up
CHILD = """
import json, sys
sys.path[:], asked, notes, words = json.loads(sys.argv[1])
sys.argv[1:] = asked
from conformance.session import main
main(notes, words)
"""
# pytest's own statuses, by name: nothing of pytest is imported here before it is known to be there
OK, FAILED, INTERRUPTED, INTERNAL, USAGE, NOTHING = range(6)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the suite, then print its table; nothing collected is an error."""
    if lacking := _absent(NEEDED):
        print(f"the suite needs {', '.join(NEEDED)}: got no {_install(lacking)}", file=sys.stderr)
        return USAGE
    if lacking := _absent(HELPFUL):
        print(f"works without what is not installed: {_install(lacking)}", file=sys.stderr)
    with TemporaryDirectory(ignore_cleanup_errors=True) as notes:
        try:
            draft = Draft(options, notes)
        except OSError as error:
            print(f"--report must be a file to write: got {error}", file=sys.stderr)
            return USAGE
        status = OK
        try:
            status = _judged(options, rest, draft, notes)
        finally:
            status = _settled(draft, options.report) or status
        return status


def _absent(packages: dict[str, str]) -> list[str]:
    return [pip for name, pip in packages.items() if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec, such as None
        return False


def _install(packages: list[str]) -> str:
    return f"{', '.join(packages)} (python -m pip install {' '.join(packages)})"


class Draft:
    """A report while it is written: under a name of its own, until `settle` puts it in place.

    Two runs in one folder do not meet, and a device or a pipe is written to once, at the end.
    """

    made: Path | None = None  # a folder of its own

    def __init__(self, options: argparse.Namespace, notes: str):
        self.target = Path(options.report).absolute()
        self.stream = self.target.exists() and not self.target.is_file()
        self.stream |= self.target.parts[1:2] == ("dev",)  # standard output may be a file
        self.target = self.target if self.stream else self.target.resolve()
        if self.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(options.report))
        name = f"{self.target.name}.{os.getpid()}"
        self.path = Path(notes) / name if self.stream else self.target.parent / name
        try:
            self._make()
        except OSError:
            if options.report != REPORT:
                raise
            self.made = Path(mkdtemp(prefix="conformance-"))  # nobody has asked for a file here
            self.target, self.path = self.made / "report.jsonl", self.made / name
            options.report = str(self.target)
            self._make()

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.open("w", encoding="utf-8").close()

    def settle(self) -> None:
        """Put what was written in its place; nothing was written by a run that tested nothing."""
        if not self.path.stat().st_size:
            self.path.unlink()
            if self.made:
                self.made.rmdir()
        elif self.stream:
            text = self.path.read_text("utf-8")
            with self.target.open("a", encoding="utf-8") as stream:
                stream.write(text)
        else:
            self.path.replace(self.target)


def _settled(draft: Draft, report: str) -> int:
    try:
        draft.settle()
    except OSError as error:
        where = f"{report}; what there is stands in {draft.path}"
        print(f"the report could not be written: got {error}, {where}", file=sys.stderr)
        return INTERRUPTED
    return OK


def _judged(options: argparse.Namespace, rest: list[str], draft: Draft, notes: str) -> int:
    """Run the cases, and return the exit status that their report and pytest stand for."""
    status, told, died = _follow(options, rest, draft, notes)
    if status == NOTHING:
        print("no case matches what was asked for: nothing was tested", file=sys.stderr)
    reported = bool(draft.path.stat().st_size)
    if not reported and (status in (USAGE, NOTHING) or told.get("collected")):
        return status  # refused, or only collected: an older report is no verdict of this run
    if not told or not reported or not has_footer(draft.path):
        got = f"{options.report}, without a footer" if reported else "no result"
        print(f"a run that was cut off has no verdict: got {got}", file=sys.stderr)
        return status or INTERNAL
    return _verdict(options, draft.path, told["whole"]) or status or (FAILED if died else OK)


def _follow(options, rest: list[str], draft: Draft, notes: str) -> tuple[int, dict, int]:
    """Run the cases; after a case that ended its process, go on in a new one.

    Return pytest's status, what the last process has told, and how many processes ended early.
    """
    shared = _sharing(options, rest)
    words, deaths = _words(options, rest, draft.path, notes), 0
    with _terminated_gently() as running:
        while True:
            status, told = _child(options.arguments, [*words, *shared], notes, running)
            unsure = shared and status in (FAILED, INTERNAL, NOTHING)
            broken = unsure and not has_footer(draft.path)
            if running.stopped or (told and not broken):
                return FAILED if deaths and status == NOTHING else status, told, deaths
            deaths += 1
            if told:
                print("a worker has ended: one process runs the other cases", file=sys.stderr)
            trim(draft.path)
            if not told and not _enter_death(draft.path, Path(notes), status, options.timeout):
                return status, told, deaths
            if deaths > DEATHS:
                print(f"a process ended {deaths} times: the run is given up", file=sys.stderr)
                return status, told, deaths
            words, shared = [*(word for word in words if word != RESUME), RESUME], []


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
    """Hand a request to end on to the process that runs, and keep what it has written."""
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


def _child(asked: list[str], words: list[str], notes: str, running: _Running) -> tuple[int, dict]:
    """Run pytest in a process of its own; return its status, and what it told at its end."""
    path = [os.path.abspath(entry) for entry in sys.path]  # who is tested may change the folder
    path += [os.getcwd()] * (os.getcwd() not in path)
    command = [sys.executable, "-c", CHILD, json.dumps([path, asked, notes, words])]
    ended = Path(notes, "ended.json")
    ended.unlink(missing_ok=True)
    running.process = subprocess.Popen(command, env=_environment(notes))
    while True:
        try:
            status = running.process.wait()
            break
        except KeyboardInterrupt:  # the other process was interrupted too, and tells what it has
            if running.stopped:
                running.process.kill()
            running.stopped = True
    told = json.loads(ended.read_text("utf-8")) if ended.exists() else {}
    return told.get("status", status), told


def _environment(notes: str) -> dict[str, str]:
    """Return the environment of a run: this process's settings, and nobody else's pytest."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # other plugins of this environment have options and warnings of their own
    own["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    own.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", notes)  # else it writes to this folder
    own.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a device
    if sys.flags.optimize:
        own["PYTHONOPTIMIZE"] = str(sys.flags.optimize)
    return own


def cores() -> int:
    """Return how many cores this process may use: by affinity, and by a container's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA.read_text("utf-8").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return allowed


def _words(options: argparse.Namespace, rest: list[str], report: Path, notes: str) -> list[str]:
    """Return what pytest is told."""
    given = [str(HERE), f"-c{HERE / 'pytest.ini'}", f"--rootdir={HERE}", "-q"]
    for name in ("backend", "subject", "mutant", "profile", "clause", "case"):
        given += [f"--{name}={value}" for value in getattr(options, name) or []]
    given += [f"--device={options.device}", f"--report={report}", f"--internal-notes={notes}"]
    given += ["--fuzz"] * options.fuzz + ["--smoke"] * (options.command == "smoke")
    given += [f"--known={options.known}"] if options.known else []
    given += [f"--case-timeout={options.timeout}"]
    for plugin in ("xdist", "_hypothesis_pytestplugin"):
        given += ["-p", plugin] * _is_there(plugin)
    return [*given, *rest]


def _sharing(options: argparse.Namespace, rest: list[str]) -> list[str]:
    """Return what makes the whole suite take all cores; a file's cases share the oracle's answers.

    Where a case has ended a process the rest is run by one.
    """
    narrowed = options.clause or options.profile or options.case or options.command == "smoke"
    if narrowed or rest or not _is_there("xdist"):
        return []
    return [f"-n{cores()}", "--dist=loadfile", "--max-worker-restart=0"]


def _enter_death(report: Path, notes: Path, status: int, seconds: float) -> bool:
    """Enter the case that ended its process as an error; return whether there is one."""
    how = overrun(notes, seconds) or f"the process ended {_how(status)}"
    current = notes / "now.json"
    if not current.exists():
        print(f"outside a case: {how}", file=sys.stderr)
        return False
    about = json.loads(current.read_text("utf-8"))
    current.unlink()
    if about["test"] in {result["test"] for result in results(begun(report))}:
        how += " after this case"
    else:
        how += " during this case" if how.startswith("the process") else ""
        enter(report, about, how)
    print(f"\n{about['subject']} on {about['device']}, {about['case']}: {how}", file=sys.stderr)
    return True


def _how(status: int) -> str:
    try:
        return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _verdict(options: argparse.Namespace, path: Path, whole: bool) -> int:
    """Print a whole report; return an exit status where the tests' own does not say enough."""
    from . import known
    from .summary import summary

    lines = read(path)
    print(f"{summary(lines)}\nreport: {options.report}", flush=True)
    if set(lines[-1]["counts"]) <= {"not offered"}:
        print("nothing was tested: all that was asked for is not offered", file=sys.stderr)
        return NOTHING
    entries = known.read(options.known) if options.known and whole else []
    if idle := known.idle(entries, lines):
        text = "; ".join(map(str, idle))
        rule = "a known difference matches a case of the suite that is offered"
        print(f"{rule}: got {text} in {options.known}", file=sys.stderr)
        return FAILED
    return FAILED if fails(lines) else OK
