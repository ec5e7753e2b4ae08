"""docs/pytest.md, followed to the letter, and the workflow that it shows."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_embed import ROOT, pytest_in
from test_plug_in_page import BLOCK, Ran, run, shown

PAGE = (ROOT / "docs/pytest.md").read_text("utf-8")
WORKFLOW = (ROOT / ".github/workflows/conformance.yml").read_text("utf-8")


def follow(line: str, folder: Path) -> Ran:
    """Run a line of the page: pytest as where the plugin is installed."""
    words = shlex.split(line.replace("python -m pytest", "pytest"))
    if words[0] != "pytest":
        return run(line, folder)
    done = pytest_in(folder, *words[1:])
    return Ran(line, done.stdout + done.stderr, done.returncode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    for block in BLOCK.finditer(PAGE):
        name = re.match(r"# (\S+\.\w+)\n", block["text"])
        if block["kind"] in ("python", "toml"):
            (folder / name[1]).write_text(block["text"], "utf-8")
    return folder


@pytest.fixture(scope="module")
def followed(folder) -> list[tuple[Ran, str]]:
    """Follow the page; return every command with the output that the page shows after it."""
    found = []
    for block in BLOCK.finditer(PAGE):
        if block["kind"] == "sh":
            found += [(follow(line, folder), "") for line in block["text"].splitlines()]
        elif block["kind"] == "text":
            found[-1] = (found[-1][0], block["text"])
    return found


def test_every_command_prints_what_the_page_shows(followed):
    assert [bool(text) for _, text in followed] == [True, True, True, False, True, True, True]
    for ran, text in followed:
        missing = shown(text, ran.output)
        assert not missing, f"{ran.command} does not print {missing}:\n{ran.output[-4000:]}"
        assert "Traceback" not in ran.output, ran.output[-4000:]
    assert [ran.status for ran, _ in followed] == [1, 0, 0, 0, 0, 0, 0]


def test_the_command_of_a_failure_runs_one_test(followed, folder):
    command = re.search("run just this: (.*)", followed[0][0].output)[1]
    assert re.search(r"= 1 failed in ", follow(command, folder).output)


def test_the_page_gives_the_workflow_what_it_takes():
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    given = re.findall(r"^      (\w+): ", block, re.MULTILINE)
    inputs = re.findall(r"^      (\w+):\n        description", WORKFLOW, re.MULTILINE)
    assert set(given) < set(inputs) == {"subject", "install", "known", "tests", "python"}
    assert ".github/workflows/conformance.yml@" in block


@pytest.mark.skipif(os.name == "nt", reason="the workflow's steps are for bash")
def test_the_workflows_steps_do_what_they_say(folder, followed):
    """The last command of the page has left a report; the step of the summary shows it."""
    steps = dict(re.findall(r"- name: (.*)\n(?: +if: .*\n)? +run: (.*(?:\n {10}.*)*)", WORKFLOW))
    assert steps.keys() == {"the suite", "the summary", "the tests"}
    script = steps["the summary"].removeprefix("|")
    step = folder / "step.md"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": str(step)}
    python = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-e", "-c", python + script], cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0
    there = folder / ".conformance"
    names = {"report.jsonl", "line", "badge.json", "junit.xml", "markdown"}
    assert {path.name for path in there.iterdir()} == names
    assert json.loads((there / "badge.json").read_text("utf-8"))["color"] == "brightgreen"
    assert ElementTree.parse(there / "junit.xml").getroot().tag == "testsuites"
    assert step.read_text("utf-8").startswith("mine on cpu: conforms: ")
    dry = f"{steps['the suite']}; {steps['the tests'].replace('pytest', 'pytest -q')}"
    told = 'python() { printf "%s|" "$@"; echo; }\n'
    given = environment | {"SUBJECT": "a b:C", "KNOWN": "", "TESTS": "x.py y.py"}
    for known, words in (("", ""), ("k 1.toml", "--known|k 1.toml|")):
        done = subprocess.run(
            ["bash", "-e", "-c", told + dry],
            env=given | {"KNOWN": known}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        suite, tests = done.stdout.splitlines()
        assert suite == f"-m|conformance|run|--subject|a b:C|{words}"
        assert tests == "-m|pytest|-q|x.py|y.py|"
