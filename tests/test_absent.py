"""What is missing may be missing: without safetensors or threadpoolctl all the rest works.

Each package is hidden in an interpreter of its own.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_command_line import cli

from attn_numpy import threads
from conformance.subjects import BACKENDS

ROOT = Path(__file__).parents[1]
HIDE = "import sys; sys.modules[{package!r}] = None\n"
MODEL = {
    "numpy": "import numpy as np; ones, model = np.ones((1, 2, 3, 4)), MultiHeadAttention(4, 2)",
    "torch": "import torch; ones, model = torch.ones(1, 2, 3, 4), MultiHeadAttention(4, 2)",
    "jax": """
import jax.numpy as jnp; from flax import nnx
ones, model = jnp.ones((1, 2, 3, 4)), MultiHeadAttention(4, 2, rngs=nnx.Rngs(0))""",
}
FILES = """
import json
from pathlib import Path
from attn_{backend} import *
{model}
assert attention(ones, ones, ones, mask=causal()).shape == (1, 2, 3, 4)
import_weights(model, export_weights(model, "nnx"), "nnx")
said = []
for call in (
    lambda: save(model, "never.safetensors"),
    lambda: load("never.safetensors"),
    lambda: import_weights(model, Path("never.safetensors")),
):
    try:
        call()
    except Exception as error:
        said.append(f"{{type(error).__name__}}: {{error}}")
print(json.dumps(said))
"""
IMPORT = """
try:
    import attn_{backend}
except ImportError as error:
    print(error)
"""
LARGE = """
import numpy as np
from attn_numpy import attention, attention_steps, causal
inputs = np.random.default_rng(0).normal(size=(3, 1, 1, 1024, 16))
for mask in (None, causal()):
    got, right = attention(*inputs, mask=mask), attention_steps(*inputs, mask=mask).output
    rounding = 1024 * np.finfo(float).eps * abs(inputs[2]).max()  # of a sum of T terms
    assert got.any() and abs(got - right).max() <= rounding, abs(got - right).max()
"""


def without(package: str, code: str) -> str:
    """Return what code prints where a package cannot be imported."""
    call = [sys.executable, "-c", HIDE.format(package=package) + code]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"without {package}:\n{code}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_only_files_need_safetensors(backend):
    code = FILES.format(backend=backend, model=MODEL[backend])
    rule = "safetensors must be installed to read or write files, pip install safetensors: got "
    found = json.loads(without("safetensors", code))
    lacking = [said for said in found if not said.startswith(f"ImportError: {rule}")]
    assert len(found) == 3 and not lacking, f"save, load and import_weights said: {found}"


@pytest.mark.parametrize(
    ("backend", "package"),
    [("numpy", "threadpoolctl"), *((b, "jaxtyping") for b in BACKENDS)],
)
def test_what_a_backend_is_said_to_need_it_needs(backend, package):
    refusal = without(package, IMPORT.format(backend=backend))
    assert (package in refusal) == (package in BACKENDS[backend]), (
        refusal or "imported all the same"
    )


def test_files_are_not_offered_without_safetensors(tmp_path):
    """Layouts still are: they go in and out as arrays."""
    report = tmp_path / "report.jsonl"
    only = ["run", "--backend", "numpy", "--profile", "weights", "--report", report]
    done = cli(*only, first=HIDE.format(package="safetensors"))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    lines = map(json.loads, report.read_text("utf-8").splitlines())
    found = {line["case"]: line["outcome"] for line in lines if "outcome" in line}
    assert set(found.values()) == {"conforms", "not offered"}, Counter(found.values())
    by_test: dict[str, set] = {}
    for case, outcome in found.items():
        by_test.setdefault(case.partition("[")[0], set()).add(outcome)
    for test in ("test_a_saved_model_comes_back_bit_for_bit", "test_nothing_is_ever_unpickled"):
        assert by_test[test] == {"not offered"}, test
    assert by_test["test_torchs_layout_goes_in_and_out"] == {"conforms"}


def test_large_calls_are_right_without_threadpoolctl():
    without("threadpoolctl", LARGE)


def test_one_thread_works_where_blas_cannot_be_held(monkeypatch):
    monkeypatch.setattr(threads, "_blas", lambda: None)
    for wanted in (None, 1, 9):
        with threads.blas_held(wanted) as count:
            assert count == 1
