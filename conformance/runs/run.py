"""A run: pytest in a process of its own, and a verdict that is read from the report it wrote.

An adapter may end its process, hang, or move to another folder. So this process never imports it:
`child.py` starts another one and waits for it, and the verdict is told here.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ..reports.report import FAILED, INTERNAL, INTERRUPTED, NOTHING, OK, USAGE, CutOffError, read
from .child import follow
from .draft import Draft

SUITE = Path(__file__).parents[1]
NEEDED = {name: name for name in ("numpy", "ml_dtypes", "pytest", "hypothesis")}
HELPFUL = {"jsonschema": "jsonschema", "rich": "rich", "xdist": "pytest-xdist"}
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a Linux container


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the suite, then print its summary; a run that tests nothing is an error."""
    if lacking := _missing(NEEDED):
        print(f"the suite needs {', '.join(NEEDED)}: got no {_install(lacking)}", file=sys.stderr)
        return USAGE
    if lacking := _missing(HELPFUL):
        print(f"works without what is not installed: {_install(lacking)}", file=sys.stderr)
    with TemporaryDirectory(ignore_cleanup_errors=True) as notes:
        try:
            draft = Draft(options, notes)
        except OSError as error:
            print(f"--report must be a file to write: got {error}", file=sys.stderr)
            return USAGE
        status = OK
        try:
            status = _run_cases(options, rest, draft, notes)
        finally:
            status = _settle(draft, options.report) or status
        return status


def _missing(packages: dict[str, str]) -> list[str]:
    return [pip for name, pip in packages.items() if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec, such as None
        return False


def _install(packages: list[str]) -> str:
    return f"{', '.join(packages)} (python -m pip install {' '.join(packages)})"


def _settle(draft: Draft, report: str) -> int:
    try:
        draft.settle()
    except OSError as error:
        where = f"{report}; the results so far are in {draft.path}"
        print(f"the report could not be written: got {error}, {where}", file=sys.stderr)
        return INTERRUPTED
    return OK


def _run_cases(options: argparse.Namespace, rest: list[str], draft: Draft, notes: str) -> int:
    """Run the cases, print the verdict, and return the exit status."""
    settings = vars(options) | {"report": str(draft.path), "notes": notes}
    words = [str(SUITE), f"-c{SUITE / 'pytest.ini'}", f"--rootdir={SUITE}", "-q"]
    for plugin in ("xdist", "_hypothesis_pytestplugin"):
        words += ["-p", plugin] * _is_there(plugin)
    status, told, died = follow(settings, [*words, *rest], _sharing(options, rest))
    reported = bool(draft.path.stat().st_size)
    if status == NOTHING:
        print("no verdict: no case matches all that was asked for together", file=sys.stderr)
    if not reported and (status in (USAGE, NOTHING) or told.get("collected")):
        return status  # refused, or only collected: an older report is no verdict of this run
    try:
        report = read(draft.path) if told else []
    except CutOffError:
        report = []
    if not report:
        cut = f"{options.report}, without a footer" if reported else "no result"
        print(f"no verdict: the run was cut off: got {cut}", file=sys.stderr)
        return status or INTERNAL
    status = status or (FAILED if died else OK)
    return _print_verdict(options, report, status, told["whole"])


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


def _sharing(options: argparse.Namespace, rest: list[str]) -> list[str]:
    """Return what makes the whole suite take all cores; a file's cases share the oracle's answers.

    Where a case has ended a process the rest is run by one.
    """
    narrowed = options.clause or options.profile or options.case or options.smoke
    if narrowed or rest or not _is_there("xdist"):
        return []
    return [f"-n{cores()}", "--dist=loadfile", "--max-worker-restart=0"]


def _print_verdict(
    options: argparse.Namespace, report: list[dict], status: int, whole: bool
) -> int:
    """Print a whole report and its verdict; return the exit status, which may be worse now."""
    from ..reports import known
    from ..reports.summary import summary
    from ..reports.terminal import Line, columns, show
    from ..reports.verdict import verdict

    text, status = verdict(report, status)
    entries = known.read(options.known) if options.known and whole else []
    show(summary(report, columns(), path=options.report))
    print(f"report: {options.report}", flush=True)
    if idle := known.idle(entries, report):
        rule = "a known difference must match a case of the suite that is offered"
        got = f"{'; '.join(map(str, idle))} in {options.known}"
        print(f"{rule}: got {got}", file=sys.stderr)
        if status == OK:
            text, status = f"no verdict: an entry of {options.known} matches nothing", FAILED
    text += " (smoke: the first case of each test)" if options.smoke and status == OK else ""
    good = "bold green" if text.startswith("conforms") else "bold yellow"
    show([Line(text, good if status == OK else "bold red")])
    return status
