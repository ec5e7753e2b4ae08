"""A run: pytest in a process of its own, and a verdict that is read from the report it wrote.

What is under test may end its process, hang, or move to another folder. So this process imports
nothing of it: `child.py` waits for the other process, and the verdict is told here.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ..reports.report import fails, has_footer, read
from .child import FAILED, INTERNAL, INTERRUPTED, NOTHING, OK, USAGE, follow
from .draft import Draft

SUITE = Path(__file__).parents[1]
NEEDED = {name: name for name in ("numpy", "ml_dtypes", "pytest", "hypothesis")}
HELPFUL = {"jsonschema": "jsonschema", "rich": "rich", "xdist": "pytest-xdist"}
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a Linux container


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
    words = _words(options, rest, draft.path, notes)
    shared = _sharing(options, rest)
    status, told, died = follow(options, words, shared, draft.path, Path(notes))
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
    given = [str(SUITE), f"-c{SUITE / 'pytest.ini'}", f"--rootdir={SUITE}", "-q"]
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


def _verdict(options: argparse.Namespace, path: Path, whole: bool) -> int:
    """Print a whole report; return an exit status where the tests' own does not say enough."""
    from ..reports import known
    from ..reports.summary import summary

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
