"""What is kept of a part's report: one line a clause, and the lines of what is not right.

A whole report names every case, which makes about 1 MiB a backend; it stays where it was written.
"""

import json
from collections import Counter
from pathlib import Path

from conformance.contract import clauses

WRONG = ("differs", "error", "known difference")
MOST = 200  # wrong results that are kept of one part; how many there were is told beside it


def read(path: Path) -> list[dict]:
    """Read a report that may have been cut off: a last line that is not whole is left out.

    >>> read(Path("/nowhere"))
    []
    """
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "type" in entry:
            found.append(entry)
    return found


def progress(part) -> str:
    """Say in a few words how much a part's report holds."""
    counts = Counter(line["type"] for line in read(part.report()))
    total = _total(part)
    if counts["bench"] or counts["rows"]:
        return f"{counts['bench']} rows"
    return f"{counts['result']}{f' of {total}' if total else ''} cases"


def _total(part) -> int | None:
    try:
        return int(part.path("total").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def part(part) -> list[dict]:
    """Return the lines of one part: how it ended, then what it found."""
    own = read(part.report()) if part.ended != "not reached" else []
    about = {
        "type": "part",
        "what": part.what,
        "backend": part.backend,
        "ended": part.ended,
        "seconds": round(part.took, 1),
        "status": part.status,
    }
    if part.ended == "failed" or (part.ended == "whole" and not own):
        about |= {"ended": "failed", "why": last_words(part.path("log"))}
    if part.what == "bench":
        names = next((line["names"] for line in own if line["type"] == "rows"), [])
        about |= {"rows": sum(line["type"] == "bench" for line in own), "of": len(names)}
        return [about, *own]
    results = [line for line in own if line["type"] == "result"]
    wrong = [line for line in results if line["outcome"] in WRONG]
    about |= {"cases": len(results), "of": _total(part), "wrong": len(wrong)}
    about |= {"counts": dict(Counter(line["outcome"] for line in results))}
    ends = [line for line in own if line["type"] in ("header", "footer")]
    if about["ended"] == "whole" and not any(line["type"] == "footer" for line in ends):
        about["ended"] = "cut off"
    return [about, *ends, *by_clause(part.backend, results), *wrong[:MOST]]


def by_clause(backend: str, results: list[dict]) -> list[dict]:
    """Return one line a clause: how many cases had which outcome, and the worst error."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["clause"], []).append(result)
    return [_clause(backend, id, groups[id]) for id in clauses() if id in groups]


def _clause(backend: str, id: str, own: list[dict]) -> dict:
    worst = max((r for r in own if _used(r)), key=_used, default=None)
    return {
        "type": "clause",
        "backend": backend,
        "clause": id,
        "level": clauses()[id].level,
        "profile": clauses()[id].profile,
        "counts": dict(Counter(r["outcome"] for r in own)),
        "worst": worst["used"] if worst else None,
        "case": worst["case"] if worst else None,
        "tensor": worst["what"] if worst else None,
        "seconds": round(sum(r["seconds"] for r in own), 2),
    }


def _used(result: dict) -> float:
    used = result["used"]
    return used if isinstance(used, float | int) else 0.0


def last_words(log: Path) -> str:
    """Return the last line that a child printed."""
    try:
        lines = log.read_text("utf-8", errors="replace").split("\n")
    except OSError:
        return "it printed nothing"
    told = [line.strip() for line in lines if line.strip()]
    return told[-1][:300] if told else "it printed nothing"


def right(lines: list[dict]) -> bool:
    """Whether every suite ran whole, nothing differs, and every measured value is right."""
    parts = [line for line in lines if line["type"] == "part"]
    whole = all(
        line["ended"] == "whole" and line["cases"] and not line["status"]
        for line in parts
        if line["what"] == "suite"
    )
    ran = all(
        line["ended"] in ("whole", "cut off") and line["rows"]
        for line in parts
        if line["what"] == "bench"
    )
    values = all(measured(line) for line in lines if line["type"] == "bench")
    return whole and ran and values and not must_differ(lines)


def must_differ(lines: list[dict]) -> bool:
    """Whether a MUST clause differs: a SHOULD clause fails no run."""
    return any(
        line["type"] == "clause"
        and line["level"] == "MUST"
        and set(line["counts"]) & {"differs", "error"}
        for line in lines
    )


def measured(line: dict) -> bool:
    """Whether our own call of a row ran and gave the right values."""
    return not {"refused", "disagrees"} & set(line["ours"])
