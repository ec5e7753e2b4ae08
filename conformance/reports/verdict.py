"""The verdict of a report in words, and the clauses that a subject violates."""

from collections import Counter, defaultdict

from ..contract import clauses
from .diagnosis import EMPTY_ROWS, NAMES
from .report import FAILED, NOTHING, OK, by_clause, in_short, results
from .terminal import Line, folded

MOST_WAYS = 4  # in which a clause is violated
NAMED = 3  # clauses in a verdict


def verdict(report: list[dict], status: int) -> tuple[str, int]:
    """Return a verdict in words and its exit status, for a run that ended with a status."""
    by_id = {id: outcome for id, outcome in by_clause(results(report)).items() if is_must(id)}
    wrong = _ranked(_wrong(report))
    differ = _listed([id for id in wrong if by_id[id] == "differs"], "differs", "differ")
    fail = _listed(
        [id for id in wrong if by_id[id] == "error"], "raises an error", "raise an error"
    )
    if wrong:
        return f"does not conform: {'; '.join(filter(None, [differ, fail]))}", FAILED
    if set(report[-1]["counts"]) <= {"not offered"}:
        return "no verdict: nothing was tested, the subject offers nothing of it", NOTHING
    if status != OK:
        return "no verdict: a process ended early, or a test outside the suite failed", status
    counts = Counter(by_id.values())
    parts = [many(counts["conforms"], "clause")]
    if known := counts["known difference"]:
        parts.append(many(known, "known difference"))
    if absent := counts["not offered"]:
        parts.append(f"{absent} not offered")
    return f"conforms: {', '.join(parts)}", OK


def violations(report: list[dict], width: int) -> list[Line]:
    """Return the clauses that each subject violates; if recognised, what it does instead."""
    by_subject = defaultdict(list)
    for result in _wrong(report):
        by_subject[result["subject"], result["device"]].append(result)
    lines = []
    for (subject, device), wrong in by_subject.items():
        ranked = _ranked(wrong)
        lines.append(Line(f"{subject} on {device} violates {many(len(ranked), 'clause')}:", "bold"))
        told = [_instead(id, group) for id, group in ranked.items() if not _only_rows(group)]
        rows = [id for id, group in ranked.items() if _only_rows(group)]
        told += [f"in fully masked rows only: {', '.join(rows)}"] if rows else []
        lines += [line for text in told for line in folded(f"  {text}", width)]
    return lines


def is_must(clause: str) -> bool:
    return clauses()[clause].level == "MUST"


def many(count: int, what: str) -> str:
    """Return a number with its noun.

    >>> many(1, "clause"), many(2, "clause")
    ('1 clause', '2 clauses')
    """
    return f"{count} {what}{'s' * (count != 1)}"


def _wrong(report: list[dict]) -> list[dict]:
    """Return the results that make a run fail."""
    return [
        r for r in results(report) if r["outcome"] in ("differs", "error") and is_must(r["clause"])
    ]


def _ranked(wrong: list[dict]) -> dict[str, list[dict]]:
    """Return wrong results by clause; clauses violated by fully masked rows only come last."""
    groups = {id: [r for r in wrong if r["clause"] == id] for id in clauses()}
    return dict(sorted(((id, g) for id, g in groups.items() if g), key=lambda x: _only_rows(x[1])))


def _only_rows(group: list[dict]) -> bool:
    """Whether a clause that is not about fully masked rows differs only because cases have some."""
    elsewhere = clauses()[group[0]["clause"]].profile != "empty"
    return elsewhere and all(r["took"] in EMPTY_ROWS for r in group)


def _instead(clause: str, group: list[dict]) -> str:
    ways = Counter(NAMES[r["took"]] if r["took"] else in_short(r) for r in group)
    shown = [f"{way} ({count})" for way, count in ways.most_common(MOST_WAYS)]
    more = [f"and {len(ways) - MOST_WAYS} more"] if len(ways) > MOST_WAYS else []
    return f"{clause}: {', '.join([*shown, *more])}"


def _listed(ids: list[str], verb: str, verbs: str) -> str:
    """Return a few names as a sentence.

    >>> _listed(["ATT-1", "ATT-2", "ATT-3", "ATT-4"], "differs", "differ")
    'ATT-1, ATT-2 and 2 more differ'
    """
    if len(ids) < 2:
        return f"{ids[0]} {verb}" if ids else ""
    names = ids if len(ids) <= NAMED else [*ids[: NAMED - 1], f"{len(ids) - NAMED + 1} more"]
    return f"{', '.join(names[:-1])} and {names[-1]} {verbs}"
