"""A pytest plugin: the result of every test, for the report and for the reader of a failure."""

import json
import platform
import re
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TextIO

import pytest

from ..contract import clauses
from ..oracle.tolerance import LEDGER
from .diagnosis import first_name
from .failure import explain, printable, repeating
from .known import KNOWN
from .overrun import overrun
from .raised import DIFFERS, message_of, notes_of, without_the_suite
from .report import (
    CRASHED,
    begun,
    case_of,
    clause_of,
    entered,
    line,
    outdated,
    results,
    versions,
)

PRECISION = "TF32 off; JAX matrix products at the highest precision; x64 for float64 cases only"
WHOLE = (
    pytest.ExitCode.OK,
    pytest.ExitCode.TESTS_FAILED,
    pytest.ExitCode.NO_TESTS_COLLECTED,
)
REPORTER = "conformance-report"  # the plugin's name
PROPERTY = "conformance"  # under which a worker's results travel to the process that reports


class Reporter:
    """Writes a line a case and a line a result, wherever the tests run."""

    def __init__(self, config: pytest.Config, subjects: list):
        self.subjects, self.started = subjects, time.time()
        self.counts: Counter[str] = Counter()
        self.cases: set[str] = set()
        self.done: set[str] = set()  # tests that an earlier process has reported
        self.crashed: set[str] = set()
        self.wanted: set[str] = set()  # tests that are to be run, and those that have been
        self.told: set[str] = set()
        self.file: TextIO | None = None
        self.options = config.option
        here = not hasattr(config, "workerinput")  # workers send, and one process writes
        wanted = here and config.option.report and not config.option.collectonly
        # absolute: an adapter may change the folder
        self.path = Path(config.option.report).absolute() if wanted else None
        alone = here and not config.getoption("numprocesses", None)
        self.notes = config.option.notes if alone else None

    def pytest_sessionstart(self) -> None:
        if self.path:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.open("a", encoding="utf-8").close()
            except OSError as error:
                raise pytest.UsageError(f"--report must be a file to write: got {error}") from error
        if self.path and self.options.resume:
            self._resume(self.path)

    def _resume(self, path: Path) -> None:
        """Go on with a report that another process has begun."""
        lines = begun(path)
        if not lines:
            return  # workers have ended before the first case
        self.file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self.cases = {line["case"] for line in lines if line["type"] == "case"}
        self.done = {result["test"] for result in results(lines)}
        self.counts = Counter(result["outcome"] for result in results(lines))
        self.started = datetime.fromisoformat(lines[0]["started"]).timestamp()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.name not in self.done]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self.options.notes:  # every test must report; the gate of the mutants leaves some out
            self.wanted |= {item.nodeid for item in session.items}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.wanted |= set(ids)

    def pytest_runtest_logstart(self) -> None:
        """Begin the report only now: a run that tests nothing does not replace the last one."""
        if not self.path or self.file:
            return
        self.file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
        header = {
            "type": "header",
            "schema": 1,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "precision": PRECISION,
            "subjects": [described(subject) for subject in self.subjects],
            "arguments": sys.argv[1:],
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self.write(line(**header))

    def write(self, text: str) -> None:
        if self.file:
            try:
                print(text, file=self.file, flush=True)
            except OSError as error:  # a full disk
                self.file = None
                said = f"the report could not be written: got {error}"
                pytest.exit(said, pytest.ExitCode.INTERRUPTED)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Write a note of the case that runs, in case it ends this process."""
        mark = item.get_closest_marker("clause")
        if not self.notes or mark is None:
            return (yield)
        path = Path(self.notes, "now.json")
        subject = item.callspec.params["subject"]
        about = _about(item, mark.args[0], subject)
        about["command"] = repeating(subject, about["case"], None)
        path.write_text(json.dumps(about), "utf-8")
        try:
            return (yield)
        finally:
            path.unlink()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call: pytest.CallInfo):
        mark = item.get_closest_marker("clause")
        error = _error(call)
        if mark and isinstance(error, Exception):
            call.excinfo = pytest.ExceptionInfo.from_exception(without_the_suite(error))
        report = yield
        if mark and isinstance(report.longrepr, tuple):  # of a skipped test: path, line, reason
            path, *rest = report.longrepr
            report.longrepr = (Path(path).name, *rest)
        if mark and (report.when == "call" or not report.passed):
            clause, subject = clauses()[mark.args[0]], item.callspec.params["subject"]
            result = _result(item, call, report, clause, subject)
            if result["outcome"] in ("differs", "error") and report.failed:
                known = item.config.option.known if KNOWN in item.stash else None
                command = repeating(subject, result["case"], known)
                text = explain(clause, subject, result, notes_of(_error(call)), command)
                if result["outcome"] == "differs":
                    report.longrepr = text
                else:
                    report.sections.append(("contract", text))
            report.user_properties.append((PROPERTY, result))
        text = printable(report.longreprtext)
        if report.failed and text != report.longreprtext:
            report.longrepr = text  # else no worker could send it
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.told.add(report.nodeid)
        vars(report).pop("node", None)  # a reader does not need to know which process ran it
        for name, result in report.user_properties:
            # a test that has crashed a worker is run again by the next: the crash is its result
            new = report.nodeid not in self.crashed
            if name == PROPERTY and new and (report.when == "call" or not report.passed):
                self._enter(result)
        if report.failed and not any(name == PROPERTY for name, _ in report.user_properties):
            self.crashed.add(report.nodeid)
            self._enter_crash(report)

    def _enter(self, result) -> None:
        self.counts[result["outcome"]] += 1
        for text in entered(result, self.cases):
            self.write(text)

    def _enter_crash(self, report: pytest.TestReport) -> None:
        """Enter a case that ended its process before it could report."""
        test = report.nodeid.split("::")[-1]
        subject, clause = clause_of(test, self.subjects) or (None, "")
        if subject is None:
            return
        about = {"case": case_of(test, subject), "clause": clause, "test": test}
        about |= {"subject": subject.name, "device": subject.device, "dtype": "unknown"}
        message = str(report.longrepr).strip() or "the process crashed"
        worker = re.match(r"worker '(\w+)'", message)
        limit = (self.options.notes or "", self.options.case_timeout)
        late = overrun(*limit, worker[1]) if worker else ""
        command = repeating(subject, about["case"], None)
        command += f" --timeout {limit[1]:g}" if late else ""
        report.longrepr = f"{late or message}\nrun just this: {command}"
        self._enter(about | CRASHED | {"message": late or message})

    def pytest_report_header(self) -> list[str]:
        shown = (f"{s.name} on {s.device} ({versions(s.versions())})" for s in self.subjects)
        return [f"subjects: {'; '.join(shown)}", f"precision: {PRECISION}"]

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        seconds = round(time.time() - self.started, 1)
        stopped = session.shouldfail or session.shouldstop or not self.wanted <= self.told
        whole = exitstatus in WHOLE and not stopped
        if whole:  # else it was cut off, and the footer that is missing says so
            counts = dict(self.counts)
            # an earlier process of the same run has died: that is no pass
            status = pytest.ExitCode.TESTS_FAILED if self.options.resume else exitstatus
            self.write(line(type="footer", counts=counts, seconds=seconds, exit=int(status)))
        if self.file:
            self.file.close()


def described(subject) -> dict:
    """Return the header's entry of a subject."""
    return {
        "subject": subject.name,
        "device": subject.device,
        "versions": subject.versions(),
        "capabilities": sorted(subject.capabilities),
        "dtypes": list(subject.dtypes),
        "masks": getattr(subject, "mask_polarity", "structure"),
    }


def _about(item, clause: str, subject) -> dict:
    """Return the part of a result that names its case."""
    return {
        "case": case_of(item.name, subject),
        "clause": clause,
        "subject": subject.name,
        "device": subject.device,
        "test": item.name,
        "dtype": str(item.callspec.params.get("dtype", "float32")),
    }


def _error(call: pytest.CallInfo) -> BaseException | None:
    return call.excinfo.value if call.excinfo else None


def _outcome(item, report, error) -> str:
    if report.passed:
        return "conforms"
    if report.skipped:
        if not hasattr(report, "wasxfail"):
            return "not offered"
        if KNOWN in item.stash:
            return "known difference"
    return "differs" if isinstance(error, DIFFERS) else "error"


def _result(item, call, report, clause, subject) -> dict:
    error = _error(call)
    result = _about(item, clause.id, subject) | {
        "outcome": _outcome(item, report, error),
        "took": None,
        "used": round(LEDGER.used, 4) if report.passed else None,
        "what": LEDGER.what if report.passed else None,
        "message": "" if report.passed else _message(error, item),
        "seconds": round(report.duration, 4),
    }
    if isinstance(error, DIFFERS):
        result["took"] = first_name(vars(subject).get("calls", []))
        result |= getattr(error, "found", {})
    return result


def _message(error: BaseException | None, item) -> str:
    if error is None:
        entry, file = item.stash[KNOWN], item.config.option.known
        return outdated(entry, file)
    return message_of(error)
