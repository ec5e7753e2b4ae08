"""The kill matrix as a page: which clauses catch which mutant, chapter by chapter."""

import platform
import time
from importlib.metadata import version
from pathlib import Path

from conformance.contract import clauses, profiles
from conformance.mutants import CHAPTERS, Mutant

from .verdict import GateVerdict

INTRODUCTION = """# The kill matrix

A suite that passes says something only if it fails on what is wrong. So here are {mutants} wrong
implementations, each a right one with a single mistake, and the clauses of
[the contract](../conformance/CONTRACT.md) that catch it. In **bold** are the clauses that the
mutant names: each of them must catch it, or the gate fails. The others noticed it too.

A mistake stands in front of one method of a right subject, so that it is the only thing that is
wrong: a mask that is inverted for `attention` is not inverted for multi-head attention, and a
clause that does not use the method cannot catch it. Every mutant was run on every test that uses
its method, case by case until one caught it, random cases left out; and the right subject was run
on all of them: it conforms.

See one fail: `python -m conformance run --mutant inverted`. Make this page again:
`python -m tools.mutants --page docs/kill-matrix.md`.

{date}, Python {python}, {versions}: {mutants} mutants, {kills} pairs of a mutant and a
clause that catches it; {busy} of {must} MUST clauses and {busy_tests} of {tests} tests of the suite
catch at least one. {cases} cases were run.
"""


def write(path: Path, mutants: list[Mutant], verdict: GateVerdict) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(mutants, verdict), "utf-8")


def page(mutants: list[Mutant], verdict: GateVerdict) -> str:
    """Return a page in Markdown: a table of mutants a chapter, and what each clause catches."""
    catches = verdict.catches()
    must = [clause.id for clause in clauses().values() if clause.level == "MUST"]
    bases = dict.fromkeys(mutant.base for mutant in mutants)
    head = INTRODUCTION.format(
        mutants=len(mutants),
        date=time.strftime("%Y-%m-%d"),
        python=platform.python_version(),
        versions=", ".join(f"{base} {version(base)}" for base in bases),
        kills=catches.total(),
        busy=sum(id in catches for id in must),
        must=len(must),
        busy_tests=len(verdict.tests) - len(verdict.idle),
        tests=len(verdict.tests),
        cases=f"{verdict.cases:,}",
    )
    lines = [head.strip()]
    for chapter, title in CHAPTERS.items():
        own = [mutant for mutant in mutants if mutant.chapter == chapter]
        lines += ["", f"## {title}", "", "| mutant | what is wrong | breaks | caught by |"]
        lines += ["|---|---|---|---|", *(row(mutant, verdict) for mutant in own)]
    return "\n".join([*lines, *by_clause(verdict), ""])


def row(mutant: Mutant, verdict: GateVerdict) -> str:
    named = ", ".join(f"**{id}**" for id in mutant.clauses)
    others = shortened([id for id in verdict.kills[mutant.name] if id not in mutant.clauses])
    base = "" if mutant.base == "numpy" else f" ({mutant.base})"
    cells = (f"`{mutant.name}`", mutant.sentence, f"`{mutant.method}`{base}")
    return f"| {' | '.join(cells)} | {'; '.join([named, *others])} |"


def shortened(ids: list[str]) -> list[str]:
    """Return ids with what they share said once, and three in a row or more by their ends.

    >>> shortened(["ATT-1", "ATT-2", "ATT-3", "ATT-7", "DOC-A3"])
    ['ATT-1 to 3, 7', 'DOC-A3']
    """
    families: dict[str, list[int]] = {}
    for id in ids:
        family = id.rstrip("0123456789")
        families.setdefault(family, []).append(int(id.removeprefix(family)))
    return [family + ", ".join(_runs(numbers)) for family, numbers in families.items()]


def _runs(numbers: list[int]) -> list[str]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return [text for texts in shown for text in texts]


def by_clause(verdict: GateVerdict) -> list[str]:
    """Return the tables of how many mutants each clause catches, a line a profile."""
    catches = verdict.catches()
    lines = [
        "",
        "## What each clause catches",
        "",
        "| profile | clauses: mutants caught |",
        "|---|---|",
    ]
    for profile in profiles():
        own = [clause for clause in clauses().values() if clause.profile == profile]
        cells = ", ".join(f"{clause.id}: {catches[clause.id]}" for clause in own)
        lines.append(f"| {profile} | {cells} |")
    return lines
