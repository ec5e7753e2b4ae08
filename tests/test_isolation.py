"""No backend needs another, and nothing is imported before it is asked for.

What is imported is seen in a fresh interpreter; what could be imported later is read from source.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conformance.reports.report import read, results

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax"}
OURS = {"attn_numpy", "attn_torch", "attn_jax", "conformance"}
ALLOWED = {
    "numpy": {"numpy", "jaxtyping", "safetensors", "threadpoolctl"},
    "torch": {"torch", "numpy", "jaxtyping", "safetensors"},
    "jax": {"jax", "flax", "numpy", "jaxtyping", "safetensors"},
}
# What a module of interop/ is about: it is installed by whoever asks for it.
INTEROP = {"attn_torch/interop/transformers.py": "transformers",
           "attn_torch/interop/recognised.py": "transformers"}  # fmt: skip
USE = {
    "numpy": "import attn_numpy as attn, numpy\nones = numpy.ones((1, 2, 3, 4))",
    "torch": "import attn_torch as attn, torch\nones = torch.ones(1, 2, 3, 4)",
    "jax": "import attn_jax as attn, jax\nones = jax.numpy.ones((1, 2, 3, 4))",
}
ATTEND = """
mask = attn.causal() & attn.padding([2])
attn.attention(ones, ones, ones, mask=mask)
attn.attention_steps(ones, ones, ones)
mask.tile(3, 3, slice(0, 2), slice(0, 2)), mask.draw(3, 3), mask.explain(0, 0, 1, 2)
attn.sequence_mask, attn.look_ahead_mask(3, 3), attn.MultiHeadAttention
"""
# What a browser has not: the clauses and the vectors need NumPy alone.
HIDE = """
import sys
hidden = ["pytest", "_pytest", "xdist", "hypothesis", "jsonschema", "rich", "ml_dtypes"]
sys.modules |= dict.fromkeys(hidden)
"""
JUDGE = """
from conformance.contract import clauses
from conformance.oracle.tolerance import Differs
from conformance.vectors import load, manifest, run_vector
from conformance.vectors.check_answer import check_answer
assert clauses()["EMPTY-2"].level == "MUST" and len(manifest()["vectors"]) == len(load())
judged = refused = 0
for vector in load().values():
    numbers = all(part.kind == "close" and part.expected.size for part in vector.expect)
    if numbers and "float32" in vector.dtypes:
        assert vector.cast("float32").inputs["query"].dtype == "float32"
        right = {part.tensor: part.expected for part in vector.expect}
        check_answer(vector, right, "float32")
        judged += 1
        try:
            check_answer(vector, {name: array + 1 for name, array in right.items()}, "float32")
        except Differs:
            refused += 1
assert judged == refused > 20, (judged, refused)
"""
COMMAND = """
import runpy
sys.argv = ["conformance", *{arguments!r}]
try:
    runpy.run_module("conformance", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code, ended.code
"""
PROBE = """
import json, sys
{code}
print("\\n" + json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


def imported(code: str, root: Path = ROOT) -> set[str]:
    """Return the top-level names of what a fresh interpreter has imported after running code."""
    arguments = [sys.executable, "-c", PROBE.format(code=code)]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    return set(json.loads(done.stdout.splitlines()[-1]))


def refuse(found: set[str], unwanted: set[str], what: str) -> None:
    assert not found & unwanted, f"{what} must not import {', '.join(sorted(found & unwanted))}"


def foreign(source: Path, allowed: set[str]) -> list[str]:
    """Return every import in a folder's sources that is neither allowed, standard nor relative."""
    found = []
    for path in sorted(source.rglob("*.py")):
        own = allowed | {INTEROP.get(path.relative_to(source.parent).as_posix())}
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = {name.split(".")[0] for name in _imports(node)}
            for name in sorted(names - own - sys.stdlib_module_names):
                found.append(f"{path.name}, line {node.lineno}: {name}")
    return found


def _imports(node: ast.AST) -> list[str]:
    """Return what a node imports; one that is not written out counts by the importing function."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [] if node.level else [node.module]
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return [name] if name in ("__import__", "import_module") else []


@pytest.mark.parametrize("backend", USE)
def test_backend_imports_no_other(backend):
    own = ALLOWED[backend] | {f"attn_{backend}"} | ({"jaxlib"} if backend == "jax" else set())
    found = imported(USE[backend] + ATTEND)
    assert f"attn_{backend}" in found
    refuse(found, (FRAMEWORKS | OURS | set(INTEROP.values())) - own, f"attn_{backend}")


@pytest.mark.parametrize("backend", USE)
def test_backend_source_names_its_framework_alone(backend):
    found = foreign(ROOT / f"attn_{backend}", ALLOWED[backend])
    assert not found, f"attn_{backend} may import {sorted(ALLOWED[backend])}:\n" + "\n".join(found)


@pytest.mark.parametrize("backend", USE)
def test_extra_installs_what_the_backend_imports(backend):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"][backend]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in extra}
    assert names == ALLOWED[backend], f"extra {backend} of pyproject.toml: got {sorted(names)}"


@pytest.mark.parametrize(("path", "library"), INTEROP.items())
def test_every_row_of_interop_is_used(path, library):
    nodes = ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
    names = {name.split(".")[0] for node in nodes for name in _imports(node)}
    assert library in names, f"{path} does not import {library}: take it out of INTEROP"


@pytest.mark.parametrize(
    "module",
    ["conformance", "conformance.contract", "conformance.cases.attention", "conformance.subjects"],
)
def test_conformance_imports_no_backend(module):
    found = imported(f"import {module}")
    assert "conformance" in found
    refuse(found, FRAMEWORKS | OURS - {"conformance"}, module)


def test_no_chapter_of_the_suite_imports_a_backend():
    folders = [ROOT / name for name in ("conformance", "tools")]
    paths = [p.relative_to(ROOT) for folder in folders for p in folder.rglob("*.py")]
    paths = [p for p in paths if p.stem != "__main__"]
    shared = {"__init__", "base", "conftest", "heads", "widths"}
    own = ("subjects/attn_*.py", "subjects/native_*.py", "subjects/*_transforms.py")
    adapters = [p for p in paths if any(map(p.match, own))]
    adapters += [p for p in paths if p.match("subjects/peers/*.py") and p.stem not in shared]
    names = [".".join(p.with_suffix("").parts) for p in sorted(set(paths) - set(adapters))]
    assert len(names) > 20
    found = imported("\n".join(f"import {name.removesuffix('.__init__')}" for name in names))
    refuse(found, FRAMEWORKS | OURS - {"conformance"}, "the suite")


def test_vectors_are_judged_where_numpy_alone_is_installed():
    imported(HIDE + JUDGE)


def test_what_is_hidden_cannot_be_imported():
    with pytest.raises(AssertionError, match="import of pytest halted"):
        imported(f"{HIDE}import conformance.conftest")


def test_bfloat16_asks_for_its_package_where_that_is_hidden():
    with pytest.raises(AssertionError, match="import of ml_dtypes halted"):
        imported(f"{HIDE}from conformance.oracle.tolerance import dtype; dtype('bfloat16')")


def test_list_imports_no_backend():
    found = imported(COMMAND.format(arguments=["list"]))
    assert "conformance" in found
    refuse(found, FRAMEWORKS | OURS - {"conformance"}, "python -m conformance list")


def test_run_imports_no_backend_beside_its_cases(tmp_path):
    report = str(tmp_path / "report.jsonl")
    arguments = ["run", "--backend", "numpy", "--clause", "MASK-3", "--report", report]
    found = imported(COMMAND.format(arguments=arguments))
    assert results(read(report))
    refuse(found, FRAMEWORKS | OURS - {"conformance"}, "python -m conformance run")


def test_cases_import_the_backend_asked_for_alone():
    suite = str(ROOT / "conformance")
    given = [suite, f"-c{suite}/pytest.ini", "--backend=numpy", "--collect-only", "-q"]
    found = imported(f"import pytest\npytest.main({given!r})")
    assert "attn_numpy" in found
    refuse(found, FRAMEWORKS | {"attn_torch", "attn_jax"}, "the suite on numpy")


def package(root: Path, source: str) -> Path:
    """Write a package `attn_fake`, and a `torch` to be caught; return the package's folder."""
    for name, text in (("attn_fake", source), ("torch", "")):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text(text, "utf-8")
    return root / "attn_fake"


LAZY = "def attention():\n    import torch\n"


def test_import_on_first_use_is_caught(tmp_path):
    package(tmp_path, LAZY)
    assert "torch" not in imported("import attn_fake", tmp_path)
    found = imported("import attn_fake; attn_fake.attention()", tmp_path)
    with pytest.raises(AssertionError, match="attn_fake must not import torch"):
        refuse(found, FRAMEWORKS, "attn_fake")


def test_code_that_fails_proves_nothing(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        imported("1 / 0", tmp_path)


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        (LAZY, "line 2: torch"),
        ("import numpy\nimport jax.numpy as jnp", "line 2: jax"),
        ("from torch.nn import functional", "line 1: torch"),
        ("from attn_numpy import attention", "line 1: attn_numpy"),
        ("try:\n    import scipy\nexcept ImportError: ...", "line 2: scipy"),
        ("import importlib\nimportlib.import_module('jax')", "line 2: import_module"),
        ("__import__('torch')", "line 1: __import__"),
    ],
)
def test_foreign_import_is_found_in_source(tmp_path, source, caught):
    folder = package(tmp_path, source)
    assert foreign(folder, {"numpy"}) == [f"__init__.py, {caught}"]


def test_own_and_standard_imports_are_not_foreign(tmp_path):
    folder = package(
        tmp_path, "import math, numpy\nfrom . import checks\nfrom .masks import Mask\n"
    )
    assert foreign(folder, {"numpy"}) == []
