"""The README, word for word: its examples run, its commands exist, its table of files is whole."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BACKENDS = {"NumPy": "attn_numpy", "PyTorch": "attn_torch", "JAX": "attn_jax"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def example(framework: str) -> str:
    (found,) = (block for block in blocks("python") if block.startswith(f"# {framework}\n"))
    return found


@pytest.mark.parametrize("framework", BACKENDS)
def test_example_runs(framework):
    names = {}
    exec(example(framework), names)
    assert tuple(names["output"].shape) == (2, 4, 5, 8)
    assert tuple(names["out"].shape) == (2, 5, 32)
    assert tuple(names["weights"].shape) == (2, 5, 5)


@pytest.mark.parametrize("framework", BACKENDS)
def test_example_draws_and_explains_as_shown(framework):
    names = {}
    exec(example(framework), names)
    mask = names["mask"]
    shown = [mask.draw(5, 5, batch=1), mask.explain(batch=1, head=0, query=3, key=2)]
    assert "\n".join(shown) + "\n" == blocks("text")[0]


@pytest.mark.parametrize("framework", BACKENDS)
def test_example_is_about_ten_lines(framework):
    lines = [line for line in example(framework).splitlines() if line and line[0] != "#"]
    assert len(lines) <= 11


def test_example_says_the_same_three_times():
    calls = [
        [
            line
            for line in example(framework).splitlines()
            if line.startswith(("mask", "output", "out,"))
        ]
        for framework in BACKENDS
    ]
    assert calls[0] == calls[1] == calls[2]
    assert len(calls[0]) == 3


def test_commands_name_sessions_that_exist():
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    sessions = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(mark) for mark in node.decorator_list)
    }
    named = set(re.findall(r"nox -s (\w+)", README))
    assert named == {"conformance", "tests", "bench", "translate", "mutants", "atlas"}
    assert named <= sessions


def test_the_check_runs_the_command_of_the_readme():
    command = "python -m nox -s tests"
    assert command in README
    assert command in (ROOT / ".ci/run").read_text("utf-8")


def test_every_file_of_a_backend_is_listed():
    listed = re.findall(r"^\| (`.*`) \|", README.split("| in `conformance/` |")[0], re.MULTILINE)
    there = {path.name for folder in BACKENDS.values() for path in (ROOT / folder).glob("*.py")}
    there -= {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", " ".join(listed))) == there


@pytest.mark.parametrize("folder", ["conformance", "tools"])
def test_folders_are_listed_and_what_is_listed_is_there(folder):
    table = README.split(f"| in `{folder}/` |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    names = re.findall(r"`([^`]+)`", " ".join(rows))
    missing = [name for name in names if not list((ROOT / folder).glob(name.rstrip("/")))]
    assert not missing
    there = [path for path in (ROOT / folder).iterdir() if path.name[0] not in "._"]
    folders = {f"{path.name}/" for path in there if path.is_dir()}
    assert folders and folders <= set(names), f"not listed: {sorted(folders - set(names))}"


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing
