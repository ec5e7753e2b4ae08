"""Results as JSON Lines (header, results, footer), and the table that a person reads."""

import json
import platform
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .budget import LEDGER, Differs
from .contract import clauses, profiles

OUTCOMES = ("conforms", "differs", "error", "not offered")
PRECISION = "TF32 off; JAX matrix products at the highest precision; x64 for float64 cases only"


class Reporter:
    """A pytest plugin: one JSON line a test, and the clause with every failure."""

    def __init__(self, config: pytest.Config, subjects: list):
        self.subjects, self.started = subjects, time.time()
        self.counts: Counter[str] = Counter()
        self.file = None
        if config.option.report and not config.option.collectonly:
            path = Path(config.option.report)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.file = path.open("w", encoding="utf-8")
            except OSError as error:
                raise pytest.UsageError(f"--report must be a file to write: got {error}") from error
        self.write(
            type="header",
            python=platform.python_version(),
            platform=platform.platform(),
            precision=PRECISION,
            subjects=[
                {"backend": s.name, "device": s.device, "versions": s.versions()} for s in subjects
            ],
            arguments=sys.argv[1:],
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )

    def write(self, **line) -> None:
        if self.file:
            print(json.dumps(line, ensure_ascii=False), file=self.file, flush=True)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        report = yield
        mark = item.get_closest_marker("clause")
        if mark and (report.when == "call" or not report.passed):
            self._enter(item, call, report, clauses()[mark.args[0]])
        return report

    def _enter(self, item, call, report, clause) -> None:
        subject = item.callspec.params["subject"]
        if report.passed:
            outcome = "conforms"
        elif report.skipped and not hasattr(report, "wasxfail"):
            outcome = "not offered"
        else:
            outcome = "differs" if isinstance(call.excinfo.value, AssertionError) else "error"
        if report.failed and not isinstance(call.excinfo.value, Differs):
            call.excinfo.value.add_note(f"{clause.id}: {clause.sentence}")
        message = "" if report.passed else _message(call.excinfo.value)
        if report.failed:
            report.sections.append(("contract", _explain(clause, subject, item, message)))
        self.counts[outcome] += 1
        self.write(
            type="result",
            clause=clause.id,
            backend=subject.name,
            device=subject.device,
            test=item.name,
            outcome=outcome,
            used=round(LEDGER.used, 4) if report.passed else None,
            what=LEDGER.what if report.passed else None,
            message=message,
            seconds=round(report.duration, 4),
        )

    def pytest_report_header(self) -> list[str]:
        shown = (f"{s.name} on {s.device} ({_versions(s.versions())})" for s in self.subjects)
        return [f"subjects: {'; '.join(shown)}", f"precision: {PRECISION}"]

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        seconds = round(time.time() - self.started, 1)
        self.write(type="footer", counts=self.counts, seconds=seconds, exit=int(exitstatus))
        if self.file:
            self.file.close()


def _message(error: BaseException) -> str:
    return "\n".join([str(error).strip(), *getattr(error, "__notes__", [])])


def _explain(clause, subject, item, message: str) -> str:
    return (
        f"{clause.id} ({clause.level}): {clause.sentence}\n"
        f"subject: {subject.name} on {subject.device}; case: {item.name}\n"
        f"{message}\n"
        f"run just this: python -m conformance run --backend {subject.name} -k '{item.name}'\n"
        f"or: python -m nox -s conformance -- --backend {subject.name} -k '{item.name}'"
    )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def read(path: str | Path) -> list[dict]:
    """Read a report. Raises ValueError where it does not end in a footer: it was cut off."""
    rule = "a report begins with a header and ends with a footer, in JSON Lines"
    try:
        lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
        whole = bool(lines) and (lines[0]["type"], lines[-1]["type"]) == ("header", "footer")
    except (json.JSONDecodeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{rule}: got {path}")
    return lines


def by_clause(results: list[dict]) -> dict[str, str]:
    """Return one outcome for each clause: the worst of its tests, "not offered" only if all are.

    >>> by_clause([{"clause": "ATT-1", "outcome": "conforms"},
    ...            {"clause": "ATT-1", "outcome": "not offered"}])
    {'ATT-1': 'conforms'}
    """
    outcomes = defaultdict(set)
    for result in results:
        outcomes[result["clause"]].add(result["outcome"])
    worst = ("error", "differs", "conforms", "not offered")
    return {id: next(word for word in worst if word in found) for id, found in outcomes.items()}


def summary(lines: list[dict]) -> str:
    """Return a report as a table: backend x device x profile, and what it ran on."""
    header, footer = lines[0], lines[-1]
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for name in ("backend", "device", "profile"):
        table.add_column(name, no_wrap=True)
    for name in ("conform", "differ", "error", "not offered", "SHOULD", "worst", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in case", no_wrap=True, max_width=50)
    groups = defaultdict(list)
    for result in lines[1:-1]:
        profile = clauses()[result["clause"]].profile
        groups[result["backend"], result["device"], profile].append(result)
    order = {name: i for i, name in enumerate(profiles())}
    ranked = {(s["backend"], s["device"]): i for i, s in enumerate(header["subjects"])}
    for key in sorted(groups, key=lambda k: (ranked[k[:2]], order[k[2]])):
        table.add_row(*key, *_row(groups[key]))
    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(table)
    counts = ", ".join(f"{footer['counts'].get(o, 0)} {o}" for o in OUTCOMES)
    versions = "; ".join(
        f"{s['backend']} on {s['device']}: {_versions(s['versions'])}" for s in header["subjects"]
    )
    return (
        f"{capture.get()}"
        "A clause counts once a profile. SHOULD clauses are counted in their own column and never "
        "fail a run. The worst error is a share of what was allowed.\n"
        f"{versions}; Python {header['python']}\n{header['precision']}\n"
        f"{len(lines) - 2} tests: {counts}; {footer['seconds']} s"
    )


def _row(results: list[dict]) -> list[str]:
    by_id = by_clause(results)
    should = [id for id in by_id if clauses()[id].level == "SHOULD"]
    kept = sum(by_id[id] == "conforms" for id in should)
    outcomes = Counter(word for id, word in by_id.items() if id not in should)
    measured = [r for r in results if r["used"]]
    worst = max(measured, key=lambda r: r["used"], default=None)
    return [
        *(str(outcomes[name]) for name in OUTCOMES),
        f"{kept} of {len(should)}" if should else "",
        f"{worst['used']:.2f}" if worst else "exact" if outcomes["conforms"] else "",
        f"{sum(r['seconds'] for r in results):.1f}",
        f"{worst['test'].split('[')[0].removeprefix('test_')}: {worst['what']}" if worst else "",
    ]
