"""The noxfile, the workflow, `.ci/run`, pyproject.toml and what names the version say the same."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
CI_RUN = (ROOT / ".ci/run").read_text("utf-8")
GATES = "python -m nox -s "
VERSIONS = "python -m nox --error-on-missing-interpreters -s "
PYTHON = "-${{ matrix.python }}"


def sessions() -> dict[str, str]:
    """Return the noxfile's sessions, each with its decorators."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    marks = {node.name: " ".join(map(ast.unparse, node.decorator_list)) for node in functions}
    named = {name: re.search(r"\bname='(.+?)'", mark) for name, mark in marks.items()}
    marks = {word[1] if (word := named[name]) else name: mark for name, mark in marks.items()}
    return {name: mark for name, mark in marks.items() if "nox.session" in mark}


def after(command: str, text: str) -> list[str]:
    """Return the words after a command that stands once in a text."""
    found = re.findall(rf"{re.escape(command)}(.*)", text)
    assert len(found) == 1, f"`{command}` must stand there once: got {found}"
    return re.findall(r"(?:\$\{\{.*?\}\}|\S)+", found[0])


def matrix(key: str) -> list[str]:
    (row,) = re.findall(rf"^ +{key}: \[(.*)\]$", WORKFLOW, re.MULTILINE)
    return [word.strip().strip('"') for word in row.split(",")]


def test_the_check_and_the_workflow_run_the_same_gates():
    gates = after(GATES, WORKFLOW)
    assert gates == after(GATES, CI_RUN), "change .ci/run and .github/workflows/ci.yml together"
    assert set(gates) == {"tests", "lint", "alone", "shapes", "build", "site", "site-browser"}


def test_a_process_that_dies_does_not_hang_the_session():
    """Pytest-xdist replaces it, and waits for ever where a file's cases stay together."""
    source = (ROOT / "noxfile.py").read_text("utf-8")
    (options,) = re.findall(r"\[.*--dist=loadfile.*\]", source)
    assert '"--max-worker-restart=0"' in options, f"a dead process must not be replaced: {options}"


def test_jax_compiles_as_users_do_in_all_but_two_sessions():
    """What XLA optimises less is rounded otherwise: one gate must see what users get."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    texts = {node.name: ast.unparse(node) for node in tree.body if hasattr(node, "name")}
    assert {name for name, text in texts.items() if "QUICKLY" in text} == {"tests", "shapes"}
    assert texts["alone"].count("env=ENV") == 2, "`alone` must compile as users do"


def test_the_workflow_names_sessions_that_exist():
    missing = set(after(GATES, WORKFLOW)) - set(sessions())
    assert not missing, f"the noxfile has no session {', '.join(sorted(missing))}"


def test_the_workflow_tries_other_versions_on_each_python():
    versioned = {f"{name}{PYTHON}" for name, mark in sessions().items() if "python=" in mark}
    assert set(after(VERSIONS, WORKFLOW)) == versioned == {f"lowest{PYTHON}", f"newest{PYTHON}"}


def test_the_workflow_calls_nothing_but_nox():
    commands = re.findall(r"^ +(?:- )?run: (.*)$", WORKFLOW, re.MULTILINE)
    install, *rest = commands
    assert install == "python -m pip install nox -c constraints.txt"
    assert len(rest) == 2
    assert all(line.startswith((GATES, VERSIONS)) for line in rest), rest
    actions = set(re.findall(r"uses: (\S+)", WORKFLOW))
    assert {action.split("@")[0] for action in actions} == {
        "actions/checkout",
        "actions/setup-python",
    }
    assert all(re.fullmatch(r"[\w/-]+@v\d+", action) for action in actions), actions


def test_the_pythons_agree():
    named = "Programming Language :: Python :: "
    classified = [
        word.removeprefix(named)
        for word in PROJECT["classifiers"]
        if re.fullmatch(rf"{named}\d+\.\d+", word)
    ]
    assert matrix("python") == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"
    assert len(matrix("system")) == 3


def test_one_version_is_named_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    latest = re.findall(r"^## \[(\d.*)\] - (.*)$", changelog, re.MULTILINE)[0]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    cited = re.findall(r'^(?:version|date-released): "?([^"\n]*)', citation, re.MULTILINE)
    assert latest[0] == PROJECT["version"], "CHANGELOG.md and pyproject.toml name one version"
    assert cited == [*latest], "CITATION.cff names the version and date of CHANGELOG.md"


def test_every_requirement_of_an_extra_has_a_floor():
    extras = PROJECT["optional-dependencies"]
    words = [word for name, extra in extras.items() if name != "all" for word in extra]
    bare = [word for word in words if not re.match(r"[\w.-]+>=[\d.]+(;|$)", word)]
    assert len(words) > 10
    assert not bare, f"nox -s lowest needs `name>=version`: got {', '.join(bare)}"


def test_a_package_has_one_floor():
    words = {word for extra in PROJECT["optional-dependencies"].values() for word in extra}
    names = [re.split(r"[>\[]", word)[0] for word in words]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"one floor for a package in all extras: got two for {', '.join(twice)}"
