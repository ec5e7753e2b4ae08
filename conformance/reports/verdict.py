"""The verdict of a report in words, and the clauses that a subject violates."""

from collections import Counter, defaultdict

from ..contract import clauses
from .diagnosis import NAMES
from .failure import in_rows_only
from .report import (
    FAILED,
    NOTHING,
    OK,
    by_clause,
    changed_input,
    conforms_now,
    entry_file,
    in_short,
    results,
)
from .terminal import Line, folded

MOST_WAYS = 4  # in which a clause is violated
FAILING = {  # the outcomes of a violated clause, and their verbs
    "differs": ("differs", "differ"),
    "error": ("raises an error", "raise an error"),
}
NAMED = 3  # clauses or subjects in a list of a verdict
UNTRIED = "no MUST clause was tested"


def verdict(report: list[dict], status: int) -> tuple[str, int]:
    """Return a verdict in words and its exit status, for a run that ended with a status."""
    if failures := [*_violated(report), *_outdated(report)]:
        return "; ".join(failures), FAILED
    by_id = by_clause(results(report))
    musts = [outcome for id, outcome in by_id.items() if is_must(id)]
    kept, tried = kept_should(by_id)
    should = f"SHOULD: {kept} of {tried} conform"
    if set(musts) <= {"not offered"} and (musts or not tried):
        what = "nothing was tested, the subject offers nothing of it"
        return f"no verdict: {f'{UNTRIED}; {should}' if tried else what}", NOTHING
    if status != OK:
        return "no verdict: a process ended early, or a test outside the suite failed", status
    return (_conforming(report, musts, kept, tried) if musts else f"{UNTRIED}; {should}"), OK


def _violated(report: list[dict]) -> list[str]:
    """Return the sentence on the clauses that are violated, in a list; [] if none is."""
    ranked, told = _ranked(_wrong(report)), []
    by_id = by_clause(_wrong(report))
    for outcome, verbs in FAILING.items():
        ids = [id for id in ranked if by_id[id] == outcome]
        group = [r for id in ids for r in ranked[id] if r["outcome"] == outcome]
        told += [f"{_listed(ids, *verbs)}{_where(report, group)}"] if ids else []
    return [f"does not conform: {'; '.join(told)}"] if told else []


def _outdated(report: list[dict]) -> list[str]:
    """Return the sentence on known differences that conform now, in a list; [] if none does."""
    found = [r for r in results(report) if conforms_now(r)]
    if not found:
        return []
    ids = list(dict.fromkeys(r["clause"] for r in found))
    now = f"{_listed(ids, 'conforms', 'conform')} now{_where(report, found)}"
    return [f"known differences must be taken out of {entry_file(found[0])}: {now}"]


def _conforming(report: list[dict], musts: list[str], kept: int, tried: int) -> str:
    counts = Counter(musts)
    parts = [many(counts["conforms"], "clause")]
    if known := counts["known difference"]:
        parts.append(many(known, "known difference"))
    if absent := counts["not offered"]:
        parts.append(f"{many(absent, 'clause')} not offered")
    if kept < tried:
        parts.append(f"SHOULD {kept} of {tried}")
    text = f"conforms: {', '.join(parts)}"
    untested = [name for pair, name in _names(report).items() if pair not in _tested(report)]
    return f"{text}; nothing of {_few(untested)} was tested" if untested else text


def _tested(report: list[dict]) -> set[tuple[str, str]]:
    """Return the subjects, with their devices, of which a MUST clause was tested."""
    tried = [r for r in results(report) if r["outcome"] != "not offered" and is_must(r["clause"])]
    return {(r["subject"], r["device"]) for r in tried}


def _names(report: list[dict]) -> dict[tuple[str, str], str]:
    """Return the name of each subject and device: without the device if all have the same."""
    pairs = [(about["subject"], about["device"]) for about in report[0]["subjects"]]
    alike = len({device for _, device in pairs}) == 1
    return {pair: pair[0] if alike else " ".join(pair) for pair in pairs}


def _where(report: list[dict], found: list[dict]) -> str:
    """Return on which subjects these results are; "" if the run has one."""
    names, pairs = _names(report), {(r["subject"], r["device"]) for r in found}
    chosen = [name for pair, name in names.items() if pair in pairs]
    return f" on {_few(chosen)}" if len(names) > 1 else ""


def violations(report: list[dict], width: int) -> list[Line]:
    """Return the clauses that each subject violates; if recognised, what it does instead."""
    by_subject = defaultdict(list)
    for result in _wrong(report):
        by_subject[result["subject"], result["device"]].append(result)
    lines = []
    for (subject, device), wrong in by_subject.items():
        ranked = _ranked(wrong)
        lines.append(Line(f"{subject} on {device} violates {many(len(ranked), 'clause')}:", "bold"))
        changed = [id for id, group in ranked.items() if all(map(changed_input, group))]
        told = [f"an input changed in place: {', '.join(changed)}"] if changed else []
        others = {id: group for id, group in ranked.items() if id not in changed}
        told += [_instead(id, group) for id, group in others.items() if not _only_rows(group)]
        rows = [id for id, group in ranked.items() if _only_rows(group)]
        told += [f"in fully masked rows only: {', '.join(rows)}"] if rows else []
        lines += [line for text in told for line in folded(f"  {text}", width)]
    return lines


def kept_should(by_id: dict[str, str]) -> tuple[int, int]:
    """Return how many SHOULD clauses conform, and how many were tested."""
    tried = [o for id, o in by_id.items() if not is_must(id) and o != "not offered"]
    return tried.count("conforms"), len(tried)


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
    wrong = [r for r in results(report) if r["outcome"] in FAILING and is_must(r["clause"])]
    return [r for r in wrong if not conforms_now(r)]


def _ranked(wrong: list[dict]) -> dict[str, list[dict]]:
    """Return wrong results by clause; clauses violated by fully masked rows only come last."""
    groups = {id: [r for r in wrong if r["clause"] == id] for id in clauses()}
    return dict(sorted(((id, g) for id, g in groups.items() if g), key=lambda x: _only_rows(x[1])))


def _only_rows(group: list[dict]) -> bool:
    return in_rows_only(clauses()[group[0]["clause"]], group)


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
    return f"{_few(ids)} {verb if len(ids) == 1 else verbs}"


def _few(names: list[str]) -> str:
    """Return one name or more, the first of many.

    >>> _few(["one"]), _few(["one", "two", "three"])
    ('one', 'one, two and three')
    """
    if len(names) == 1:
        return names[0]
    shown = (
        names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    )
    return f"{', '.join(shown[:-1])} and {shown[-1]}"
