"""What CI shows of a report: a line, a badge, and JUnit's XML."""

import re
from collections import Counter
from collections.abc import Iterable
from xml.etree import ElementTree

from ..contract import clauses
from .report import FAILED, OK, conforms_now, results
from .verdict import is_must, verdict

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
WRONG = {"differs": "failure", "error": "error"}  # the elements of JUnit


def one_line(report: list[dict]) -> str:
    """Return the subjects and the verdict in one line."""
    return f"{', '.join(map(_name, report[0]['subjects']))}: {_verdict(report)[0]}"


def badge(report: list[dict]) -> dict:
    """Return the verdict as shields.io takes it for a badge from an endpoint."""
    text, status = _verdict(report)
    color = {OK: "brightgreen", FAILED: "red"}.get(status, "lightgrey")
    return {"schemaVersion": 1, "label": "attention", "message": text, "color": color}


def junit(report: list[dict]) -> str:
    """Return JUnit's XML: a suite a subject, without the cases that are not offered.

    Known differences and the cases of SHOULD clauses that differ are skipped tests.
    """
    root = ElementTree.Element("testsuites", name="attn-rosetta")
    for about in report[0]["subjects"]:
        own = [r for r in results(report) if _name(r) == _name(about)]
        _add_suite(root, _name(about), [r for r in own if r["outcome"] != "not offered"])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def _verdict(report: list[dict]) -> tuple[str, int]:
    return verdict(report, report[-1]["exit"])


def _name(about: dict) -> str:
    """Return the name of a subject, or of a result's."""
    return f"{about['subject']} on {about['device']}"


def _add_suite(root: ElementTree.Element, name: str, tried: Iterable[dict]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=name)
    counts: Counter[str] = Counter()
    for result in tried:
        clause = clauses()[result["clause"]]
        about = {"classname": f"{clause.profile}.{clause.id}", "name": result["case"]}
        case = ElementTree.SubElement(suite, "testcase", about, time=str(result["seconds"]))
        kind = _kind(result)
        counts[kind] += 1
        if kind:
            text = NO_XML.sub("?", result["message"])
            first = text.partition("\n")[0]
            reason = "a SHOULD clause" if not is_must(clause.id) else "a known difference"
            words = f"{reason}: {first}" if kind == "skipped" else first
            ElementTree.SubElement(case, kind, message=words).text = text
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    suite.attrib |= {name: str(counts[kind]) for name, kind in kinds.items()}
    suite.set("tests", str(counts.total()))


def _kind(result: dict) -> str:
    """Return the element that a result has in JUnit's XML, "" if it has none."""
    if result["outcome"] == "conforms":
        return ""
    if conforms_now(result) or is_must(result["clause"]):
        return WRONG.get(result["outcome"], "skipped")
    return "skipped"
