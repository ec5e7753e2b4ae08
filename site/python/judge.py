"""The frozen vectors as a judge: a subject's answers become a report, and this a verdict.

What `python -m conformance` says of a vector is said here in the same words, without pytest: in a
page, and in the build of the page.
"""

import sys
from collections.abc import Container, Iterator
from html import escape
from importlib.util import find_spec
from types import ModuleType

from conformance import subjects
from conformance.contract import clauses
from conformance.oracle.tolerance import LEDGER
from conformance.reports.diagnosis import first_name
from conformance.reports.failure import explain
from conformance.reports.recorded import watch
from conformance.reports.report import OK, case_of, results, subject_part
from conformance.reports.verdict import verdict, violations
from conformance.subjects.protocol import NotOffered, Subject
from conformance.vectors.check_subject import check, checks

MODULE = "adapter"
WIDTH = 76
ABSENT = set() if find_spec("ml_dtypes") else {"bfloat16"}  # a browser's Python has no ml_dtypes


def plugged(code: str) -> list:
    """Return the class `Subject` of an adapter's code as a subject, on each of its devices."""
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(compile(code, f"{MODULE}.py", "exec"), vars(module))
    path = f"{MODULE}:Subject"
    try:
        return subjects.plug(path)
    except ValueError as error:
        raise ValueError(f"--subject {path}: {error}") from error


def report_on(found: list, only: Container[str] = clauses()) -> list[dict]:
    """Run the vectors of all clauses or some on subjects; return the report's header, results."""
    about = [{"subject": subject.name, "device": subject.device} for subject in found]
    header = {"type": "header", "subjects": about}
    return [header, *(result for subject in found for result in judged(subject, only))]


def judged(subject: Subject, only: Container[str]) -> Iterator[dict]:
    """Yield the result of every vector of some clauses."""
    for entry, dtype in checks():
        id, clause = entry["id"], entry["clause"]
        if clause not in only:
            continue
        name = f"test_frozen_vector_of_{clause.replace('-', '_')}{subject_part(subject)}"
        about = {"test": f"{name}{id.replace('.', '-')}-{dtype}]", "clause": clause, "dtype": dtype}
        about |= {"subject": subject.name, "device": subject.device}
        LEDGER.open(clause)
        watch(subject)
        result = {"outcome": "conforms", "took": None, "message": ""}
        try:
            if dtype in ABSENT or dtype not in subject.dtypes:
                raise NotOffered(f"{subject.name} on {subject.device} has no {dtype}")
            check(subject, id, dtype)
        except NotOffered as error:
            result |= {"outcome": "not offered", "message": str(error)}
        except AssertionError as error:
            result |= {"outcome": "differs", "message": str(error)}
            result |= {"took": first_name(subject.calls)} | getattr(error, "found", {})
        except Exception as error:
            result |= {"outcome": "error", "message": f"{type(error).__name__}: {error}"}
        yield {"type": "result", "case": case_of(about["test"], subject)} | about | result


def failures(report: list[dict], found: list) -> dict[str, str]:
    """Return the first failure of each violated clause, as the suite explains it."""
    by_name, told = {(s.name, s.device): s for s in found}, {}
    for result in results(report):
        if result["outcome"] in ("differs", "error"):
            subject = by_name[result["subject"], result["device"]]
            text = explain(clauses()[result["clause"]], subject, result, [], None)
            told.setdefault(result["clause"], text)
    return told


def verdict_of(report: list[dict]) -> tuple[str, list[str]]:
    """Return the verdict in a line, and the clauses that are violated in lines."""
    return verdict(report, OK)[0], [line.text for line in violations(report, WIDTH)]


def judge(code: str) -> str:
    """Judge an adapter's code; return the verdict as HTML."""
    found = plugged(code)
    report = report_on(found)
    text, lines = verdict_of(report)
    parts = [f'<p class="verdict"><strong>{escape(text)}</strong></p>']
    if lines:
        parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    for failure in failures(report, found).values():
        parts.append(f"<details><summary>{failure.partition(':')[0]}: the first failure</summary>")
        parts.append(f"<pre>{escape(failure)}</pre></details>")
    return "".join(parts)
