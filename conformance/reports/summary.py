"""What a report says, as a table for a terminal, for a page, or as JSON; and what has changed."""

import json
import sys
from collections import Counter, defaultdict

from ..contract import clauses, profiles
from .diagnosis import EMPTY_ROWS, NAMES
from .report import OUTCOMES, by_clause, in_short, results, versions

MOST = 4  # ways in which a clause is not kept
NOTE = (
    "A clause counts once a profile. SHOULD clauses are counted in their own column and never fail "
    "a run. The worst error is a share of what was allowed."
)
# How well a case does; what is not offered, or absent, stands apart.
RANKS: dict[str | None, int] = {"conforms": 2, "known difference": 1, "differs": 0, "error": 0}
COLUMNS = {
    "subject": "subject",
    "device": "device",
    "profile": "profile",
    "conforms": "conform",
    "differs": "differ",
    "error": "error",
    "known difference": "known",
    "not offered": "not offered",
    "should": "SHOULD",
    "worst": "worst",
    "seconds": "seconds",
    "in case": "in case",
}


def summary(lines: list[dict], how: str = "text") -> str:
    """Return a report's verdicts: subject x device x profile, and what it ran on."""
    if how == "json":
        return json.dumps(as_data(lines), indent=2, ensure_ascii=False)
    rows = [[str(row[name]) for name in COLUMNS] for row in table(lines)]
    table_text = _markdown(rows) if how == "markdown" else _text(rows)
    footer, own = lines[-1], results(lines)
    counts = ", ".join(f"{footer['counts'].get(o, 0)} {o}" for o in OUTCOMES)
    ending = [*differences(lines), NOTE, *_ran_on(lines[0])]
    ending.append(f"{len(own)} tests: {counts}; {footer['seconds']} s")
    return table_text + ("\n\n" if how == "markdown" else "\n").join(ending)


def as_data(lines: list[dict]) -> dict:
    """Return the same as data: versions, a row for each profile, what differs."""
    header, footer = lines[0], lines[-1]
    return {
        "subjects": header["subjects"],
        "python": header["python"],
        "precision": header["precision"],
        "profiles": table(lines),
        "differences": [
            {name: r[name] for name in ("subject", "device", "clause", "case", "outcome", "took")}
            for r in results(lines)
            if r["outcome"] in ("differs", "error", "known difference")
        ],
        "counts": footer["counts"],
        "seconds": footer["seconds"],
    }


def grouped(lines: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Return the results by subject, device and profile, in the order of header and contract."""
    order = {name: i for i, name in enumerate(profiles())}
    ranked = {(s["subject"], s["device"]): i for i, s in enumerate(lines[0]["subjects"])}
    groups = defaultdict(list)
    for result in results(lines):
        profile = clauses()[result["clause"]].profile
        groups[result["subject"], result["device"], profile].append(result)
    return {k: groups[k] for k in sorted(groups, key=lambda k: (ranked[k[:2]], order[k[2]]))}


def table(lines: list[dict]) -> list[dict]:
    """Return a row for each subject, device and profile."""
    return [
        dict(zip(("subject", "device", "profile"), key, strict=True)) | _row(group)
        for key, group in grouped(lines).items()
    ]


def _row(group: list[dict]) -> dict:
    by_id = by_clause(group)
    should = [word for id, word in by_id.items() if clauses()[id].level == "SHOULD"]
    tried, kept = [word for word in should if word != "not offered"], should.count("conforms")
    outcomes = Counter(w for id, w in by_id.items() if clauses()[id].level == "MUST")
    worst = max((r for r in group if r["used"]), key=lambda r: r["used"], default=None)
    exact = "exact" if outcomes["conforms"] else ""
    return {name: outcomes[name] for name in OUTCOMES} | {
        "should": f"{kept} of {len(tried)}" if tried else "",
        "worst": f"{worst['used']:.2f}" if worst else exact,
        "seconds": f"{sum(r['seconds'] for r in group):.1f}",
        "in case": f"{worst['case'].split('[')[0].removeprefix('test_')}: {worst['what']}"
        if worst
        else "",
    }


def differences(lines: list[dict]) -> list[str]:
    """Return what each subject does otherwise, clause by clause, and the alternatives it took."""
    found: dict[tuple, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for r in results(lines):
        if r["outcome"] in ("differs", "error") and clauses()[r["clause"]].level == "MUST":
            found[r["subject"], r["device"]][r["clause"]].append(r)
    sentences = []
    for (subject, device), own in found.items():
        rows = [id for id in clauses() if id in own and for_empty_rows_alone(own[id])]
        others = [_otherwise(id, own[id]) for id in clauses() if id in own and id not in rows]
        told = [*others, *([f"for its empty rows alone: {', '.join(rows)}"] if rows else [])]
        sentences.append(f"{subject} on {device} does otherwise in\n  " + "\n  ".join(told) + "\n")
    return sentences


def for_empty_rows_alone(own: list[dict]) -> bool:
    """Whether a clause differs only because its cases have rows that may see nothing, too."""
    elsewhere = clauses()[own[0]["clause"]].profile != "empty"
    return elsewhere and all(r["took"] in EMPTY_ROWS for r in own)


def _otherwise(clause: str, own: list[dict]) -> str:
    ways = Counter(NAMES[r["took"]] if r["took"] else in_short(r) for r in own)
    shown = [f"{way} ({count})" for way, count in ways.most_common(MOST)]
    more = [f"and {len(ways) - MOST} more"] if len(ways) > MOST else []
    return f"{clause}: {', '.join([*shown, *more])}"


def _ran_on(header: dict) -> list[str]:
    shown = "; ".join(
        f"{s['subject']} on {s['device']}: {versions(s['versions']) or 'no versions told'}"
        for s in header["subjects"]
    )
    return [f"{shown}; Python {header['python']}", header["precision"]]


def _text(rows: list[list[str]]) -> str:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return _markdown(rows)
    drawn = Table(box=SIMPLE_HEAD, header_style="bold")
    for name, title in COLUMNS.items():
        left = name in ("subject", "device", "profile", "in case")
        width = 50 if name == "in case" else None
        drawn.add_column(title, no_wrap=True, justify="left" if left else "right", max_width=width)
    for row in rows:
        drawn.add_row(*row)
    # a name is shown as it is, and whole: the table is as wide as it needs
    console = Console(width=sys.maxsize, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


def _markdown(rows: list[list[str]]) -> str:
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def diff(old: list[dict], new: list[dict]) -> tuple[str, bool]:
    """Return what changed between two reports, case by case, and whether anything got worse.

    Worse is a case that fell in `RANKS`, or that conformed and is not tried any more.
    """
    keys = ("subject", "device", "case")
    before, after = ({tuple(r[k] for k in keys): r for r in results(x)} for x in (old, new))
    groups: dict[str, list[str]] = defaultdict(list)
    worse = False
    for key in [*after, *(k for k in before if k not in after)]:
        was, now = (x[key]["outcome"] if key in x else None for x in (before, after))
        if was != now and {was, now} != {None, "not offered"}:
            clause = (after.get(key) or before[key])["clause"]
            where = f"{clause} {key[0]} on {key[1]}: {key[2]}"
            worse |= _is_worse(was, now)
            groups[_change(was, now)].append(f"  {where} ({was or 'absent'} -> {now or 'absent'})")
    text = "\n".join(f"{word}: {len(groups[word])}\n" + "\n".join(groups[word]) for word in groups)
    return text or "nothing has changed", worse


def _change(was: str | None, now: str | None) -> str:
    if was is None:
        return "new"
    if now is None:
        return "gone"
    if now == "conforms":
        return "began to conform"
    if was == "conforms":
        return "ceased to conform"
    return "got worse" if _is_worse(was, now) else "otherwise"


def _is_worse(was: str | None, now: str | None) -> bool:
    """Whether a case got worse; `diff` says when."""
    if now not in RANKS:
        return was == "conforms"  # nobody knows that it still does
    return RANKS[now] < RANKS.get(was, 0)
