"""The frozen vectors as a judge: a subject's answers become a report, and this a verdict.

What `python -m conformance` says of a vector is said here in the same words, without pytest: in a
page, and in the build of the page.
"""

import re
import sys
from collections import Counter
from collections.abc import Container, Iterator
from html import escape
from importlib.util import find_spec
from types import ModuleType

from execute import line_of

from conformance import subjects
from conformance.contract import clauses
from conformance.oracle.tolerance import LEDGER
from conformance.reports.diagnosis import first_name
from conformance.reports.failure import explain, repeating
from conformance.reports.recorded import watch
from conformance.reports.report import OK, by_clause, case_of, results, subject_part
from conformance.reports.verdict import is_must, verdict, violations
from conformance.subjects.protocol import NotOffered, Subject
from conformance.vectors.check_subject import check, checks

MODULE = "adapter"
FILE = f"{MODULE}.py"
OTHER = {"attend": "hide", "hide": "attend"}  # what True says instead
NEXT = 'Next: <a href="check-your-own.html#how-do-i-go-on">run the whole suite on your machine</a>.'
WIDTH = 76
ABSENT = set() if find_spec("ml_dtypes") else {"bfloat16"}  # a browser's Python has no ml_dtypes


class NoAdapter(ValueError):
    """What is no adapter; the message says what to write."""


def plugged(code: str) -> list:
    """Return the class `Subject` of an adapter's code as a subject, on each of its devices."""
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(compile(code, FILE, "exec"), vars(module))
    if not hasattr(module, "Subject"):
        raise NoAdapter("Name your class `Subject`.")
    try:
        return subjects.plug(f"{MODULE}:Subject")
    except ValueError as error:
        raise NoAdapter(str(error)) from error


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
            message = f"{type(error).__name__}: {error}"
            if line := line_of(error, FILE):
                message += f"\nin line {line} of your code"
            result |= {"outcome": "error", "message": message}
        yield {"type": "result", "case": case_of(about["test"], subject)} | about | result


def failures(report: list[dict], found: list) -> dict[str, str]:
    """Return the first failure of each violated clause, as the suite explains it."""
    by_name, told = {(s.name, s.device): s for s in found}, {}
    for result in results(report):
        if result["outcome"] in ("differs", "error"):
            subject = by_name[result["subject"], result["device"]]
            command = repeating(subject, result["case"], None)
            text = explain(clauses()[result["clause"]], subject, result, [], command)
            told.setdefault(result["clause"], text)
    return told


def verdict_of(report: list[dict]) -> tuple[str, list[str]]:
    """Return the verdict in a line, and the clauses that are violated in lines."""
    return verdict(report, OK)[0], [line.text for line in violations(report, WIDTH)]


def told(report: list[dict], found: list) -> str:
    """Return the verdict as HTML: in the suite's words, or in words that say how to go on."""
    text = verdict_of(report)[0]
    if text.startswith("no verdict: nothing was tested"):
        text = 'No verdict: nothing was tested. Write `capabilities = {"attention"}`.'
    elif text.startswith("conforms:") and "SHOULD" not in text:
        ends = Counter(end for id, end in by_clause(results(report)).items() if is_must(id))
        text = f"Conforms on every frozen vector that it offers ({ends['conforms']} clauses; "
        text += f"{ends['not offered']} are for features that you did not declare)."
    took = Counter(r["took"] for r in results(report) if r["outcome"] == "differs").most_common(1)
    polarity = OTHER.get(found[0].mask_polarity)
    if took and took[0][0] == "inverted" and polarity:
        told = (
            f'Your code reads True the other way: set mask_polarity = "{polarity}", or use ~mask.'
        )
        return f"<p>{told}</p>{strong(text)}"
    return strong(text, NEXT if text.lower().startswith("conforms") else "")


def strong(text: str, more: str = "") -> str:
    """Return a verdict as HTML, with a link at each clause."""
    return f'<p class="verdict"><strong>{linked(text)}</strong> {more}</p>'


def linked(text: str) -> str:
    """Return text as HTML, with a link at each clause to its profile in the contract."""

    def link(word: re.Match) -> str:
        id = word[0]
        to = f"reference/contract.html#{clauses()[id].profile}" if id in clauses() else ""
        return f'<a href="{to}">{id}</a>' if to else id

    return re.sub(r"\b[A-Z]+-\d+\b", link, escape(text))


def judge(code: str) -> str:
    """Judge an adapter's code; return the verdict as HTML."""
    found = plugged(code)
    report = report_on(found)
    parts = [told(report, found)]
    if lines := verdict_of(report)[1]:
        parts.append(f"<pre>{linked(chr(10).join(lines))}</pre>")
    for failure in failures(report, found).values():
        parts.append(f"<details><summary>{failure.partition(':')[0]}: the first failure</summary>")
        parts.append(f"<pre>{escape(failure)}</pre></details>")
    return "".join(parts)
