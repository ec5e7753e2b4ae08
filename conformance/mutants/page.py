"""The kill matrix as a page: which clauses catch which mutant, chapter by chapter."""

import platform
import time
from importlib.metadata import version
from pathlib import Path

from ..contract import clauses, profiles
from . import CHAPTERS, Mutant
from .judge import Judgement

INTRODUCTION = """# The kill matrix

A suite that passes says something only if it fails on what is wrong. So here are {mutants} wrong
implementations, each a right one with a single mistake, and the clauses of
[the contract](../conformance/CONTRACT.md) that catch it. In **bold** are the clauses that the
mutant names: each of them must catch it, or the gate fails. The others noticed it too.

A mistake stands in front of one method of a right subject, so that it is the only thing that is
wrong: a mask that is inverted for `attention` is not inverted for multi-head attention, and a
clause that does not use the method cannot catch it. Every mutant was run on every case that uses
its method, apart from the random ones, and the right subject on the same cases: it conforms.

See one fail: `python -m conformance run --mutant inverted`. Make this page again:
`python -m conformance mutants --page docs/kill-matrix.md`.

{date}, Python {python}, {versions}: {mutants} mutants, {kills} kills, {busy} of {must} MUST clauses
catch at least one mutant; {cases} cases.
"""


def write(path: Path, mutants: list[Mutant], judgement: Judgement) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(mutants, judgement), "utf-8")


def page(mutants: list[Mutant], judgement: Judgement) -> str:
    """Return a page in Markdown: a table of mutants a chapter, and what each clause catches."""
    catches = judgement.catches()
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
        cases=f"{judgement.cases:,}",
    )
    lines = [head]
    for complaint in judgement.complaints:
        lines += ["", f"**The gate fails**: {complaint.splitlines()[0]}"]
    for chapter, title in CHAPTERS.items():
        own = [mutant for mutant in mutants if mutant.chapter == chapter]
        lines += ["", f"## {title}", "", "| mutant | what is wrong | breaks | caught by |"]
        lines += ["|---|---|---|---|", *(row(mutant, judgement) for mutant in own)]
    return "\n".join([*lines, *by_clause(judgement), ""])


def row(mutant: Mutant, judgement: Judgement) -> str:
    caught = judgement.kills[mutant.name]
    named = [f"**{id}**" for id in mutant.clauses if id in caught]
    others = [id for id in caught if id not in mutant.clauses]
    base = "" if mutant.base == "numpy" else f" ({mutant.base})"
    cells = (f"`{mutant.name}`", mutant.sentence, f"`{mutant.method}`{base}")
    return f"| {' | '.join(cells)} | {', '.join(named + others) or 'nothing'} |"


def by_clause(judgement: Judgement) -> list[str]:
    """Return the tables of how many mutants each clause catches, a line a profile."""
    catches = judgement.catches()
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
