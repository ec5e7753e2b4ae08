"""The clauses of CONTRACT.md as data, and the mark by which a test names the clause it proves."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

CLAUSE = re.compile(r"- \*\*(?P<id>[A-Z]+-[A-Z]?\d+)\*\* (?P<level>MUST|SHOULD): (?P<sentence>.+)")


@dataclass(frozen=True)
class Clause:
    """One sentence of the contract."""

    id: str
    profile: str
    level: str
    sentence: str


@cache
def clauses() -> dict[str, Clause]:
    """Return every clause by its id, in the order of CONTRACT.md.

    >>> clauses()["EMPTY-2"].profile
    'empty'
    """
    found, profile = {}, ""
    for line in Path(__file__).with_name("CONTRACT.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            profile = line.removeprefix("## ")
        elif line.startswith("- "):
            match = CLAUSE.fullmatch(line)
            if not match:
                raise ValueError(f"a clause reads '- **ID** MUST: ...' or SHOULD: got {line}")
            if match["id"] in found:
                raise ValueError(f"a clause id is never reused: got {match['id']} twice")
            found[match["id"]] = Clause(match["id"], profile, match["level"], match["sentence"])
    return found


def profiles() -> list[str]:
    """Return the profiles in the order of CONTRACT.md."""
    return list(dict.fromkeys(clause.profile for clause in clauses().values()))


def clause(id: str) -> "pytest.MarkDecorator":
    """Mark a test with the clause that it proves."""
    import pytest  # here: the clauses can be read without it

    if id not in clauses():
        raise ValueError(f"a test proves a clause of CONTRACT.md: got {id}")
    return pytest.mark.clause(id)
