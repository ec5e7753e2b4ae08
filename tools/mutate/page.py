"""What was found, as lines on the screen and as a page."""

import time
from collections import Counter
from pathlib import Path

from .mutant import SourceMutant
from .verdicts import Verdict, Verdicts

INTRODUCTION = """# Source mutants

Here are mistakes in the source of the three backends, and who notices them. The suite (conformance)
is asked first, because it is all that somebody has who plugs in or copies a folder; then the
project's own tests. *Patches* are mistakes that somebody could make, written by hand
(`tools/mutate/patches/`); *changes* are made by rule: another operator, a number one off, an
argument or a statement left out. Of the changes a sample is judged. An *equivalent* one shows in no
public call, for the reason given beside it.

See one: `python -m tools.mutate NAME`. Make this page again: `nox -s mutate`.

{date}: {judged} of {mutants} were judged.
"""
COLUMNS = ("conformance", "tests", "nobody", "equivalent")


def said(mutant: SourceMutant, where: str, answer: Verdict) -> str:
    """Return a line on a mutant that was judged just now."""
    how = answer.get("case", f"NOT CAUGHT by {where}")
    return f"{mutant.id}: {how} ({answer['seconds']:.1f} s)"


def state(mutant: SourceMutant, verdicts: Verdicts, suite: bool = False) -> str:
    """Return who catches a mutant: a word of `COLUMNS`, or nothing if it was not judged."""
    if mutant.equivalent:
        return "equivalent"
    verdict = verdicts.get(mutant, suite)
    return verdict["where"] if "case" in verdict else "nobody" if verdict else ""


def summary(mutants: list[SourceMutant], verdicts: Verdicts, suite: bool = False) -> str:
    """Return which mutants nobody catches, and how many each catches."""
    states = {mutant.id: state(mutant, verdicts, suite) for mutant in mutants}
    lines = [f"{line}\n" for m in mutants if states[m.id] == "nobody" for line in [missed(m)]]
    for kind in ("patch", "operator"):
        own = [m for m in mutants if m.kind == kind]
        count = Counter(states[m.id] for m in own)
        found = ", ".join(f"{word} {count[word]}" for word in COLUMNS)
        name = "patches" if kind == "patch" else "changes"
        if own:
            lines.append(f"{len(own)} {name}, {len(own) - count['']} judged. Caught by: {found}")
    return "\n".join(lines)


def missed(mutant: SourceMutant) -> str:
    return f"Nobody catches {mutant.id}\n  {mutant.file}:{mutant.lines[0]}  {mutant.sentence}"


def write(path: Path, mutants: list[SourceMutant], verdicts: Verdicts) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(mutants, verdicts), "utf-8")


def page(mutants: list[SourceMutant], verdicts: Verdicts) -> str:
    """Return the page: counts by backend and file, what nobody catches, and every patch."""
    states = {mutant.id: state(mutant, verdicts) for mutant in mutants}
    judged = sum(map(bool, states.values()))
    lines = [
        INTRODUCTION.format(date=time.strftime("%Y-%m-%d"), judged=judged, mutants=len(mutants))
    ]
    for kind, title in (("patch", "Patches"), ("operator", "Changes by rule")):
        own = [mutant for mutant in mutants if mutant.kind == kind]
        lines += [f"## {title}", "", *table(own, states, "backend"), ""]
        lines += ["File by file:", "", *table(own, states, "file"), ""]
    lines += ["## Nobody catches", ""]
    lines += [f"- `{m.id}`: {m.sentence}" for m in mutants if states[m.id] == "nobody"] or ["None."]
    lines += ["", "## Every patch", "", "| patch | what is wrong | caught by |", "|---|---|---|"]
    for mutant in (m for m in mutants if m.kind == "patch"):
        verdict = verdicts.get(mutant)
        whom = mutant.equivalent or verdict.get("case", states[mutant.id] or "not judged")
        test = whom.split("[")[0].rpartition("/")[2] if "::" in whom else whom
        who = f"{states[mutant.id]}: `{test}`" if "::" in whom else test
        lines.append(f"| `{mutant.id}` | {cell(mutant.sentence)} | {cell(who)} |")
    excused = [m for m in mutants if m.kind == "operator" and m.equivalent]
    lines += ["", "## Changes that show in no call", ""]
    lines += [f"- `{m.file}`: {m.sentence}: {m.equivalent}" for m in excused] or ["None is listed."]
    return "\n".join([*lines, ""])


def table(mutants: list[SourceMutant], states: dict[str, str], group: str) -> list[str]:
    """Return a table: how many mutants of each "backend" or "file" were judged, and who catches."""
    lines = [f"| {group} | all | judged | conformance | tests only | nobody | equivalent |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name in sorted({getattr(mutant, group) for mutant in mutants}):
        own = [states[mutant.id] for mutant in mutants if getattr(mutant, group) == name]
        numbers = [len(own), sum(map(bool, own)), *(own.count(word) for word in COLUMNS)]
        lines.append(f"| `{name}` | {' | '.join(map(str, numbers))} |")
    return lines


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
