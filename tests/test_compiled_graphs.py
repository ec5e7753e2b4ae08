"""What ATT-11 compiles for torch is arithmetic: else an eager call would be compared with itself.

The chapter's own tests run, with a backend that keeps each graph it is handed and runs it as it is.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from attn_torch.fused import has_kernel
from conformance import test_attention as chapter
from conformance.subjects.attn_torch import Adapter, _need_compiler
from conformance.subjects.protocol import NotOffered

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own look at it


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """The names of what the captured graphs call."""
    found: list[str] = []

    def keep(graph, _):
        for node in graph.graph.nodes:
            if node.op.startswith("call"):
                found.append(getattr(node.target, "__name__", str(node.target)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    return found


CASES = [*chapter.KERNEL, *chapter.WALKED]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_kernel_is_in_the_graph(called, case):
    chapter.test_compiled_equals_eager(Adapter(), case)
    assert called.count("scaled_dot_product_attention") == 1, called


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_kernel_serves_these_cases_on_a_gpu_too(device):
    widths = [(case.shape.D, case.shape.D_v) for case in chapter.KERNEL]
    lost = [pair for pair in widths if not has_kernel(device, torch.float32, *pair)]
    assert widths and not lost, f"no kernel on {device} for D and D_v of {lost}"


def test_the_textbook_is_in_the_graph(called):
    chapter.test_compiled_steps_equal_eager_ones(Adapter())
    lacking = {"matmul", "softmax", "tanh", "where"} - set(called)
    assert called.count("matmul") == 2 and not lacking, called


def test_the_gradients_are_of_a_graph(called):
    chapter.test_compiled_gradients_equal_eager_ones(Adapter())
    assert called.count("scaled_dot_product_attention") == 1, called


def test_a_gpu_needs_a_c_compiler_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NotOffered, match=r"for cuda with a C compiler, and none is on the PATH"):
        _need_compiler("cuda")
    _need_compiler("mps")
    monkeypatch.setenv("CC", "cc")
    _need_compiler("cuda")


def test_nothing_compiled_is_offered_without_a_compiler(tmp_path):
    report = tmp_path / "report.jsonl"
    call = [sys.executable, "-m", "conformance", "run", "--backend", "torch", "--clause", "ATT-11"]
    env = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC")}
    done = subprocess.run(
        [*call, "--device", "cpu", "--report", str(report), "-rs"],
        cwd=ROOT, env=env | {"PATH": str(tmp_path)}, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    lines = map(json.loads, report.read_text("utf-8").splitlines())
    outcomes = [line["outcome"] for line in lines if "outcome" in line]
    assert len(outcomes) == len(chapter.KERNEL) + len(chapter.WALKED) + 2, done.stdout
    assert set(outcomes) == {"not offered"}, done.stdout
    assert "for cpu with a C++ compiler: got No working C++ compiler found" in done.stdout
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
