"""The page of one device, made from its lines: what it is, what conforms, how fast it is."""

from collections import Counter

from tools.accelerator_timings import timings

WORDS = (
    "Clauses: how many of those that were tried conform in every case that ran, SHOULD clauses "
    "included. The worst error is a share of what rounding excuses on its case: above 1 it differs."
)
MOST = 30  # differing cases that the page shows of one backend


def page(lines: list[dict]) -> str:
    """Return the page in Markdown."""
    about = lines[0]
    title = f"# {about['device']}"
    if about["rehearsal"]:
        title = "# Rehearsal on the CPU"
    sections = [title, _opening(lines), _machine(about), *_suite(lines), *timings(lines)]
    return "\n\n".join(section for section in sections if section) + "\n"


def of(lines: list[dict], kind: str, **wanted) -> list[dict]:
    """Return the lines of one type whose fields are as wanted."""
    return [
        line
        for line in lines
        if line["type"] == kind and all(line.get(k) == v for k, v in wanted.items())
    ]


def _opening(lines: list[dict]) -> str:
    about, ends = lines[0], of(lines, "end")
    words = [f"Made by `python tools/accelerator.py` on {about['date']}"]
    if ends:
        took = f"{ends[0]['seconds']:.0f} s of {about['budget']:.0f} s"
        words.append(f"in {took}.")
    else:
        words.append("by a run that has not ended yet, or was cut off.")
    if about["rehearsal"]:
        words.append(
            "**This is a rehearsal**: the same program on the CPU, with tiny shapes. "
            "Its timings say nothing about any device."
        )
    if about["options"]:
        words.append(f"The suite was narrowed by `{' '.join(about['options'])}`.")
    told = [f"- {line['backend']} was not run: {line['why']}." for line in of(lines, "absent")]
    for what in ("suite", "bench"):
        if what not in about["wanted"]:
            name = {"suite": "The conformance suite was", "bench": "The benchmarks were"}[what]
            told.append(f"- {name} not asked for.")
    told += [_part(line) for line in of(lines, "part")]
    return " ".join(words) + "\n\n" + "\n".join(told)


def _part(line: dict) -> str:
    name = f"{line['backend']}, {'suite' if line['what'] == 'suite' else 'benchmarks'}"
    if line["ended"] == "not reached":
        return f"- {name}: **not reached**."
    if line["ended"] == "running":
        return f"- {name}: **still running, or the whole run was cut off**{_so_far(line)}."
    if line["ended"] == "failed":
        return f"- {name}: **failed** with exit status {line['status']}: `{line['why']}`"
    if line["ended"] == "cut off":
        return f"- {name}: **cut off** after {line['seconds']:.0f} s{_so_far(line)}."
    if line.get("rows", line["of"]) != line["of"]:
        return f"- {name}: its time was over after {line['seconds']:.0f} s{_so_far(line)}."
    return f"- {name}: ran whole in {line['seconds']:.0f} s{_so_far(line)}."


def _so_far(line: dict) -> str:
    done, things = (line["rows"], "rows") if "rows" in line else (line["cases"], "cases")
    return f", {done}{' of ' + str(line['of']) if line['of'] else ''} {things}"


def _machine(about: dict) -> str:
    memory = f", {about['memory']:.0f} GiB" if about["memory"] else ""
    count = f", the first of {about['count']}" if about["count"] > 1 else ""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    rows = {
        "device": f"{about['device']}{memory}{count}",
        "driver": about["driver"] or "not told",
        "versions": versions,
        "host": f"{about['platform']}, {about['cores']} cores",
        "precision": "TF32 is off; JAX matrix products at the highest precision",
    }
    return table(["", ""], [[name, text] for name, text in rows.items()])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(escape(cell) for cell in line)} |" for line in lines)


def escape(text: str) -> str:
    r"""Return a text for a cell.

    >>> print(escape("a|b"))
    a\|b
    """
    return " ".join(text.split()).replace("|", r"\|")


def _suite(lines: list[dict]) -> list[str]:
    parts = [line for line in of(lines, "part", what="suite") if line.get("cases")]
    if not parts:
        return []
    backends = [line["backend"] for line in parts]
    found = ["## Conformance", _verdicts(lines, parts), _profiles(lines, backends), WORDS]
    for line in parts:
        if line["wrong"]:
            found.append(_wrong(lines, line))
    return found


def _verdicts(lines: list[dict], parts: list[dict]) -> str:
    outcomes = ("conforms", "differs", "error", "known difference", "not offered")
    rows = []
    for line in parts:
        cases = f"{line['cases']} of {line['of']}" if line["of"] else str(line["cases"])
        counts = [str(line["counts"].get(outcome, 0)) for outcome in outcomes]
        worst = worst_of(of(lines, "clause", backend=line["backend"]))
        case = f"{worst['case']}: {worst['tensor']}" if worst else ""
        rows.append([line["backend"], cases, *counts, case])
    return table(["backend", "cases", *outcomes, "worst error in"], rows)


def worst_of(clauses: list[dict]) -> dict | None:
    """Return the clause with the largest error, or None where no error was measured."""
    return max((line for line in clauses if line["worst"]), key=lambda c: c["worst"], default=None)


def _profiles(lines: list[dict], backends: list[str]) -> str:
    head = ["profile"]
    for backend in backends:
        head += [f"{backend}: clauses", f"{backend}: worst error"]
    rows = []
    for profile in dict.fromkeys(line["profile"] for line in of(lines, "clause")):
        row = [profile]
        for backend in backends:
            row += _profile(of(lines, "clause", profile=profile, backend=backend))
        rows.append(row)
    return table(head, rows)


def _profile(clauses: list[dict]) -> list[str]:
    tried = [line for line in clauses if set(line["counts"]) != {"not offered"}]
    if not tried:
        return ["not offered" if clauses else "not reached", ""]
    kept = sum(set(line["counts"]) <= {"conforms", "not offered"} for line in tried)
    worst = worst_of(tried)
    return [f"{kept} of {len(tried)}", f"{worst['worst']:.2f}" if worst else "exact"]


def _wrong(lines: list[dict], part: dict) -> str:
    own = [
        line
        for line in of(lines, "result", subject=part["backend"])
        if line["outcome"] in ("differs", "error", "known difference")
    ]
    counts = Counter(line["clause"] for line in own)
    told = ", ".join(f"{clause} ({count})" for clause, count in counts.items())
    rows = [
        [line["clause"], line["outcome"], line["case"], first_line(line["message"])]
        for line in own[:MOST]
    ]
    more = f"\n\nand {part['wrong'] - MOST} more" if part["wrong"] > MOST else ""
    head = ["clause", "outcome", "case", "what was found"]
    return f"### What {part['backend']} gets wrong\n\n{told}\n\n{table(head, rows)}{more}"


def first_line(text: str, most: int = 200) -> str:
    """Return the first line of a message, cut to a cell's size."""
    line = (text.splitlines() or [""])[0]
    return line if len(line) <= most else f"{line[:most]}..."
