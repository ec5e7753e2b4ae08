"""The summary of a report: for a terminal, as Markdown for a page, or as data for a program."""

from collections import Counter, defaultdict
from operator import itemgetter

from ..contract import clauses, profiles
from .report import OUTCOMES, by_clause, results, versions
from .terminal import Line, aligned, cut, folded
from .verdict import is_must, kept_should, many, verdict, violations

MOST_LINES = 15  # of violated clauses: a screen holds them with the table above
NOTE = (
    "A profile has one row, and a clause counts once in it. SHOULD clauses are counted in their "
    "own column and never fail a run. The worst error is relative to its tolerance."
)
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
TEXTS = ("subject", "device", "profile", "in case")
OPTIONAL = ("seconds", "should", "not offered")  # left out of a narrow table, in this order
LEAST = 20  # of the last column: with less room than this it is left out


def summary(
    report: list[dict], width: int = 80, wide: bool = False, path: str = "REPORT"
) -> list[Line]:
    """Return a summary for a terminal: the rows of its table, worst first, and what is violated.

    Profiles in which nothing differs are one line a subject; `wide` gives each its row, and every
    column in full. `path` is where the report is, for the command that shows more.
    """
    rows = sorted(table(report), key=_badness)
    shown = rows if wide else [row for row in rows if not _is_fine(row)]
    lines = _table(shown, width, wide) if shown else []
    lines += [] if wide else _fine(report, rows, width)
    lines += [*folded(_counts(report), width), *folded(_ran_on(report[0]), width)]
    if wide:
        lines += [*folded(report[0]["precision"], width), *folded(NOTE, width)]
    told = violations(report, width)
    if not wide and len(told) > MOST_LINES:
        more = f"  ... and {len(told) - MOST_LINES + 1} more: python -m conformance summary"
        told[MOST_LINES - 1 :] = [Line(f"{more} {path} --wide")]
    return [*lines, *told]


def _badness(row: dict) -> tuple:
    """Return what sorts rows: worst first, else in the order of subjects and contract."""
    return (-row["differs"] - row["error"], -row["known difference"], not _lacks_should(row))


def _lacks_should(row: dict) -> bool:
    kept, _, tried = row["should"].partition(" of ")
    return kept != tried


def _is_fine(row: dict) -> bool:
    return not (row["differs"] or row["error"] or row["known difference"] or _lacks_should(row))


def _is_offered(row: dict) -> bool:
    return bool(row["conforms"] or row["should"]) or not _is_fine(row)


def _fine(report: list[dict], rows: list[dict], width: int) -> list[Line]:
    """Return a line a subject for the profiles in which nothing differs."""
    lines = []
    for about in report[0]["subjects"]:
        key = (about["subject"], about["device"])
        own = [row for row in rows if (row["subject"], row["device"]) == key]
        offered = [row for row in own if _is_fine(row) and row["conforms"]]
        if own and not any(map(_is_offered, own)):
            lines += folded(f"{key[0]} {key[1]}: nothing offered", width)
        elif offered:
            conform = "profile conforms" if len(offered) == 1 else "profiles conform"
            text = f"{key[0]} {key[1]}: {len(offered)} {conform}"
            worst = max((row["worst"] for row in offered if row["worst"] != "exact"), default="")
            text += f", worst error {worst} of the tolerance" if worst else ""
            lines += folded(text, width, "green")
    return lines


def _counts(report: list[dict]) -> str:
    counts, seconds = report[-1]["counts"], report[-1]["seconds"]
    words = COLUMNS | {"known difference": "known to differ", "not offered": "skipped"}
    told = ", ".join(f"{counts[name]} {words[name]}" for name in OUTCOMES if counts.get(name))
    return f"{many(len(results(report)), 'test')} in {seconds} s: {told}"


def _ran_on(header: dict) -> str:
    packages: dict[str, str] = {}
    for about in header["subjects"]:
        packages |= about["versions"]
    return versions({"Python": header["python"]} | packages)


def as_data(report: list[dict]) -> dict:
    """Return the summary as data: versions, a row for each profile, what differs."""
    header, footer = report[0], report[-1]
    return {
        "subjects": header["subjects"],
        "python": header["python"],
        "precision": header["precision"],
        "profiles": table(report),
        "differences": [
            {name: r[name] for name in ("subject", "device", "clause", "case", "outcome", "took")}
            for r in results(report)
            if r["outcome"] in ("differs", "error", "known difference")
        ],
        "counts": footer["counts"],
        "seconds": footer["seconds"],
    }


def markdown(report: list[dict]) -> str:
    """Return the summary as Markdown: a table with every row and column, and what is violated."""
    rows = [[str(row[name]) for name in COLUMNS] for row in table(report)]
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *rows]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    told = "\n".join(line.text for line in violations(report, 1000))
    ends = [NOTE, _ran_on(report[0]), report[0]["precision"], _counts(report)]
    return "\n\n".join(filter(None, [drawn, told, *ends, verdict(report, report[-1]["exit"])[0]]))


def grouped(report: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Return the results by subject, device and profile, in the order of header and contract."""
    order = {name: i for i, name in enumerate(profiles())}
    ranked = {(s["subject"], s["device"]): i for i, s in enumerate(report[0]["subjects"])}
    groups = defaultdict(list)
    for result in results(report):
        profile = clauses()[result["clause"]].profile
        groups[result["subject"], result["device"], profile].append(result)
    return {k: groups[k] for k in sorted(groups, key=lambda k: (ranked[k[:2]], order[k[2]]))}


def table(report: list[dict]) -> list[dict]:
    """Return a row for each subject, device and profile."""
    return [
        dict(zip(("subject", "device", "profile"), key, strict=True)) | _row(group)
        for key, group in grouped(report).items()
    ]


def _row(group: list[dict]) -> dict:
    by_id = by_clause(group)
    kept, tried = kept_should(by_id)
    outcomes = Counter(outcome for id, outcome in by_id.items() if is_must(id))
    worst = max((r for r in group if r["used"]), key=itemgetter("used"), default=None)
    exact = "exact" if outcomes["conforms"] else ""
    return {name: outcomes[name] for name in OUTCOMES} | {
        "should": f"{kept} of {tried}" if tried else "",
        "worst": f"{worst['used']:.2f}" if worst else exact,
        "seconds": f"{sum(r['seconds'] for r in group):.1f}",
        "in case": f"{worst['case'].split('[')[0].removeprefix('test_')}: {worst['what']}"
        if worst
        else "",
    }


def _table(rows: list[dict], width: int, wide: bool) -> list[Line]:
    """Return a table that is no wider than the terminal, if its names are not."""
    names = list(COLUMNS)
    cells = {name: [COLUMNS[name], *(str(row[name]) for row in rows)] for name in names}
    sizes = {name: max(map(len, cells[name])) + 2 for name in names}
    if not wide:
        names.remove("in case")
        lacking = any(map(_lacks_should, rows))
        for name in sorted(OPTIONAL, key=lambda name: lacking and name == "should"):
            if sum(sizes[n] for n in names) - 2 > width:
                names.remove(name)
        room = width - sum(sizes[n] for n in names)
        if len(names) == len(COLUMNS) - 1 and room >= LEAST:
            names.append("in case")
            cells["in case"] = [cut(cell, room) for cell in cells["in case"]]
    left = [number for number, name in enumerate(names) if name in TEXTS]
    grid = [list(row) for row in zip(*(cells[name] for name in names), strict=True)]
    head, *drawn = aligned(grid, left)
    styles = [_style(row) for row in rows]
    return [Line(head, "bold"), *map(Line, drawn, styles), Line("")]


def _style(row: dict) -> str:
    if row["differs"] or row["error"]:
        return "red"
    return "green" if _is_fine(row) else "yellow"
