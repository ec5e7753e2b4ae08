"""docs/which-clause.md: its clauses, vectors and tests are there, and each shows its own clause."""

import json
import re
from pathlib import Path

from conformance.contract import clauses
from conformance.embed.chapters import clause_cases

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/which-clause.md").read_text("utf-8")
ROW = re.compile(
    r"\| (?P<project>[^|]+) \| \[(?P<name>[\w.-]+/[\w.-]+)#(?P<number>\d+)\]\((?P<url>[^)]+)\) "
    r"\| (?P<wrong>[^|]+) \| (?P<clause>[A-Z]+-\d+) \| `(?P<shows>[\w.-]+)` \|"
)
ROWS = [row for line in PAGE.splitlines() if (row := ROW.fullmatch(line))]


def test_page_has_twenty_bugs_and_no_row_that_is_not_read():
    assert len(ROWS) == 20
    assert sum(line.startswith("|") for line in PAGE.splitlines()) == 22  # the head, and its line
    assert len({row["url"] for row in ROWS}) == 20


def test_a_thread_is_linked_by_its_name():
    for row in ROWS:
        kinds = "issues|pull"
        assert re.fullmatch(
            rf"https://github\.com/{row['name']}/({kinds})/{row['number']}", row["url"]
        )


def test_every_clause_is_one_that_must_be_kept():
    wrong = [r["clause"] for r in ROWS if r["clause"] not in clauses()]
    assert not wrong, f"CONTRACT.md has no clause {', '.join(wrong)}"
    assert {clauses()[row["clause"]].level for row in ROWS} == {"MUST"}


def test_what_shows_a_bug_is_of_its_clause():
    manifest = (ROOT / "conformance/vectors/manifest.json").read_text("utf-8")
    there = {vector["id"]: {vector["clause"]} for vector in json.loads(manifest)["vectors"]}
    for case in clause_cases():
        there.setdefault(case.function.__name__, set()).add(case.clause)
    for row in ROWS:
        assert row["clause"] in there.get(row["shows"], ()), f"{row['shows']} for {row['clause']}"


def test_profiles_that_are_named_exist():
    named = re.findall(r"--profile (\w+)", PAGE)
    assert named and set(named) <= {clause.profile for clause in clauses().values()}
