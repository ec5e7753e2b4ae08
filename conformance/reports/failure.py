"""A failure as text: the clause, the case, what is wrong and how to repeat it."""

import shlex
from typing import Any

from .diagnosis import EMPTY_ROWS, NAMES


def printable(text: str) -> str:
    """Return a text with its lone surrogates escaped: UTF-8 has no bytes for them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def repeating(subject: Any, case: str, known: str | None) -> str:
    """Return the command that runs one case alone."""
    chosen = f"{subject.asked_as} --device {subject.device} --case {shlex.quote(case)}"
    chosen += f" --known {shlex.quote(known)}" if known else ""
    return f"python -m conformance run {chosen}"


def in_rows_only(clause, wrong: list[dict]) -> bool:
    """Whether a clause that is not about fully masked rows differs only because cases have some."""
    return clause.profile != "empty" and all(r["took"] in EMPTY_ROWS for r in wrong)


def explain(clause, subject, result: dict, notes: list[str], command: str) -> str:
    """Return a failure as text that needs no knowledge of the suite, and how to repeat it."""
    message = result["message"].removeprefix(f"{clause.id}: ")
    message = message.removesuffix(printable("\n".join(["", *notes])))
    lines = [
        f"{clause.id} ({clause.level}): {clause.sentence}",
        f"subject {subject.name}, device {subject.device}, dtype {result['dtype']}, "
        f"case {result['case']}",
        message,
    ]
    if took := result["took"]:
        where = "in fully masked rows only, " if in_rows_only(clause, [result]) else ""
        lines.append(f"{where}this answer is recognised as {took!r}: {NAMES[took]}")
    lines.append(f"run just this: {command}")
    return "\n".join([*lines, *notes])
