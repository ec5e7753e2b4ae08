"""docs/plug-in.md, followed to the letter: its files are written and its commands run in order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from conformance.subjects.protocol import CAPABILITIES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/plug-in.md").read_text("utf-8")
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
OUR_OWN = {"masks", "layers", "checkpoints", "errors", "blocked", "parts", "compiled", "traced",
           "counting", "transforms", "second", "autocast", "altered"}  # fmt: skip


class Ran(NamedTuple):
    """One command of the page, and what it printed."""

    command: str
    output: str
    status: int


def run(command: str, folder: Path) -> Ran:
    """Run a line of the page with this Python; the packages are those of this checkout."""
    words = shlex.split(command)
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = [sys.executable if word == "python" else word for word in words]
    environment = os.environ | settings | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words[len(settings) :],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Ran(command, done.stdout + done.stderr, done.returncode)


def shown(text: str, output: str) -> list[str]:
    """Return the lines of the page that the output does not print, in this order."""
    lines, missing = iter(output.splitlines()), []
    for line in text.splitlines():
        parts = (re.escape(part) for part in line.split("..."))
        pattern = re.compile(".*".join(parts))
        if not any(pattern.fullmatch(got) for got in lines):
            missing.append(line)
    return missing


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> list[tuple[Ran, str]]:
    """Follow the page; return every command with the output that the page shows after it."""
    folder, found, last = tmp_path_factory.mktemp("newcomer"), [], ""
    for block in BLOCK.finditer(PAGE):
        kind, text = block["kind"], block["text"]
        name = re.match(r"# (\S+\.\w+)\n", text)
        if kind in ("python", "toml") and name:
            (folder / name[1]).write_text(text, "utf-8")
        elif kind == "sh":
            for line in text.splitlines():
                if "pip install" not in line:  # this environment has it
                    found.append((run(line, folder), ""))
        elif kind == "text":
            last = text
            found[-1] = (found[-1][0], last)
    return found


def test_page_has_six_steps():
    assert [int(n) for n in re.findall(r"^## (\d)\.", PAGE, re.MULTILINE)] == [1, 2, 3, 4, 5, 6]


def test_every_command_prints_what_the_page_shows(followed):
    assert sum(bool(text) for _, text in followed) >= 8
    for ran, text in followed:
        missing = shown(text, ran.output)
        assert not missing, f"{ran.command} does not print {missing}:\n{ran.output[-4000:]}"
        assert "Traceback" not in ran.output, ran.output[-4000:]


def test_the_way_ends_in_a_pass(followed):
    statuses = {ran.command: ran.status for ran, _ in followed}
    for command, status in statuses.items():
        passing = ("known.toml", "profile empty", "module:Subject", "diff")
        passes = any(word in command for word in passing)
        assert status == 0 or not passes, f"{command}: {status}"
    assert sum("known.toml" in command for command in statuses) == 2


def test_a_line_that_is_not_printed_is_found():
    assert shown("one\n... three", "zero\none\ntwo three") == []
    assert shown("one\n... three", "two three\none") == ["... three"]


def test_table_names_every_capability_of_an_adapter():
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert named == set(CAPABILITIES) - OUR_OWN


def test_install_command_names_an_extra_that_exists():
    assert '".[conformance]"' in PAGE
    assert "\nconformance = [" in (ROOT / "pyproject.toml").read_text("utf-8")
