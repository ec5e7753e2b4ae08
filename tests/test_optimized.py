"""Under `python -OO`, which keeps no docstring and no assert, `explain` says the same."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARRAY = {"numpy": "numpy.array", "torch": "torch.tensor", "jax": "jax.numpy.array"}
MASKS = """
import {framework}
from functools import reduce
from operator import and_
from attn_{backend} import *

def odd(batch, head, query, key):
    return (query + key) % 2 == 1

marked, table = {array}([[False, True, False]]), {array}([[[[True, False, True]] * 3]])
parts = [causal(), sliding_window(1), prefix([2]), padding([2]), padding(hidden=marked)]
parts += [segments([[0, 0, 1]]), segments([[0, 1, 1]], [[1, 1, 0]])]
parts += [allow(table), hide(table), predicate(odd)]
print(reduce(and_, [part | ~part for part in parts]).explain(0, 0, 2, 1))
"""


@cache
def explained(backend: str, *flags: str) -> list[str]:
    """Return what a mask of every constructor says of a cell, in an interpreter with flags."""
    framework = "jax.numpy" if backend == "jax" else backend
    code = MASKS.format(backend=backend, framework=framework, array=ARRAY[backend])
    call, env = [sys.executable, *flags, "-c", code], os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout.splitlines()


def sentences(lines: list[str]) -> set[str]:
    """Return what stands behind the name of each part of a mask, its readings left out."""
    return {line.rpartition("): ")[2].removeprefix("not: ") for line in lines[1:]}


@pytest.mark.parametrize("flag", ["-O", "-OO"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_explain_says_the_same_without_docstrings(backend, flag):
    assert explained(backend, flag) == explained(backend)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_explain_says_the_same_in_every_backend(backend):
    assert explained(backend) == explained("numpy")


def test_every_rule_has_a_sentence_of_its_own():
    lines = explained("numpy")
    assert len(lines) == 1 + 2 * 10, f"the mask has a part of every kind: got {lines}"
    found = sentences(lines)
    assert len(found) == 9 and "None" not in found, f"ten rules, two alike: got {sorted(found)}"
