"""The page of one run: its tables, and which rows are below a floor or above a limit.

A speed row may have a floor, which its ratio should reach. Any other row may have a limit,
`at_most`, which its figure should not exceed.
"""

HEAD = ("work", "against", "ours ms", "theirs ms", "ratio", "middle half", "floor", "of peak")

PARTS = ("speed", "overhead", "memory", "growth", "compile")


def figure(row: dict) -> float | None:
    """Return the number that a row's floor or limit is about, None where it was not measured."""
    return row[next(name for name in ("ratio", "micros", "mib", "seconds") if name in row)]


def miss(row: dict) -> str:
    """Say by how much a row is below its floor or above its limit; nothing where it is not."""
    measured, floor, limit = figure(row), row.get("floor"), row.get("at_most")
    if measured is not None and floor is not None and measured < floor:
        return f"below the floor of {floor:.2f} by {1 - measured / floor:.1%}"
    if measured is not None and limit is not None and measured > limit:
        return f"above the limit of {limit:g} by {measured / limit - 1:.1%}"
    return ""


def bounded(report: dict) -> list[dict]:
    """Return the rows that have a floor or a limit."""
    rows = [row for part in PARTS for row in report.get(part, [])]
    return [row for row in rows if row.get("floor", row.get("at_most")) is not None]


def misses(report: dict) -> list[str]:
    """Return one sentence for each row that misses its floor or its limit."""
    lines = []
    for row in filter(miss, bounded(report)):
        against = f" against {row['against']}" if "against" in row else ""
        lines.append(f"{row['work']}{against}: {figure(row):.2f} is {miss(row)}")
    return lines


def summary(report: dict) -> str:
    """Return the sentence that counts the misses, and what was not measured."""
    figures = [figure(row) for row in bounded(report)]
    absent = figures.count(None)
    text = f"{len(misses(report))} of the {len(figures) - absent} rows"
    text += " that have a floor or a limit miss it"
    return f"{text}; {absent} more could not be measured." if absent else f"{text}."


def markdown(report: dict) -> str:
    """Return the report as a page."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"**{summary(report)}** Each of them says so in its row.",
        "",
        "Made by `python -m benchmarks --page docs/benchmarks.md`: float32, the two calls of a row",
        "interleaved in one process, medians. A ratio above 1 means that ours is faster, and the",
        "middle half is that of the rounds' own ratios. A floor is the ratio that a row should",
        "reach; a row without a floor is there for comparison. Operations count allowed cells",
        "only, and the peak is a NumPy matrix product's. Each whole run adds a line to",
        "[benchmarks.jsonl](benchmarks.jsonl).",
        "",
        f"{report['date']}, commit {report['commit']}, {report['machine']},",
        f"Python {report['python']}, {versions}; matrix-product peak {report['gflops']} GFLOP/s.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
        *(_speed_line(row) for row in report["speed"]),
    ]
    for part in (_overhead_page, _memory_page, _compile_page):
        lines += part(report)
    return "\n".join(lines)


def _speed_line(row: dict) -> str:
    cells = (
        row["work"],
        row["against"],
        _milliseconds(row["ours"]),
        _milliseconds(row["theirs"]),
        f"**{row['ratio']:.2f}**",
        f"{row['low']:.2f} to {row['high']:.2f}",
        _bound(row, "floor", ".2f"),
        f"{row['of_peak']:.0%}",
    )
    return f"| {' | '.join(cells)} |"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{1 if seconds >= 1e-3 else 3}f}"


def _overhead_page(report: dict) -> list[str]:
    """Return the table on what a tiny call costs; a history's first lines have none."""
    lines = ["", "| a tiny call | against | ours us | theirs us | us more | at most |"]
    lines.append("|---|---|---|---|---|---|")
    for row in report.get("overhead", []):
        micros = (f"{x:.1f}" for x in (1e6 * row["ours"], 1e6 * row["theirs"]))
        shown = (*micros, f"**{row['micros']:.1f}**", _bound(row, "at_most", ".0f"))
        lines.append(f"| {' | '.join((row['work'], row['against'], *shown))} |")
    return lines if len(lines) > 3 else []


def _bound(row: dict, name: str, form: str) -> str:
    """Return the cell of a floor or a limit: in words where the row misses it."""
    if words := miss(row):
        return f"**{words}**"
    return "none" if row[name] is None else format(row[name], form)


def _memory_page(report: dict) -> list[str]:
    """Return the tables on memory: how much it is, and how it grows with T."""
    lines = [
        "",
        "| memory beyond inputs and outputs, one head of 64 | MiB | at most |",
        "|---|---|---|",
    ]
    for row in report["memory"]:
        mib = "not measured here" if row["mib"] is None else f"{row['mib']:.1f}"
        lines.append(f"| {row['work']} | {mib} | {_bound(row, 'at_most', '.0f')} |")
    lines += [
        "",
        "Four times the length takes 4 times the memory where it grows linearly, 16 times where",
        "quadratically; a row that keeps its limit counts as linear. About 1 means that buffers of",
        "a fixed size are all there is. Torch's figures are resident memory, to a few hundred KiB;",
        "one may be negative, where a call gives back what an earlier one had left.",
        "",
        "| four times the length | memory grows | at most |",
        "|---|---|---|",
    ]
    for row in report["growth"]:
        shown = "from nothing" if row["ratio"] is None else f"{row['ratio']:.1f} x"
        lines.append(f"| {row['work']} | {shown} | {_bound(row, 'at_most', '.0f')} |")
    return lines


def _compile_page(report: dict) -> list[str]:
    """Return the table on how long the first call takes."""
    lines = ["", "| tracing and compiling | seconds | at most |", "|---|---|---|"]
    for row in report["compile"]:
        cells = (row["work"], f"**{row['seconds']:.1f}**", _bound(row, "at_most", ".0f"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines
