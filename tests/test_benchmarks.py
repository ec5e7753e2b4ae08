"""The benchmarks' page: what it says of the figures. What the figures are is no test's matter."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import accelerator, memory
from benchmarks.__main__ import main, markdown
from benchmarks.truth import given

ROOT = Path(__file__).parents[1]

MACHINE = {"date": "", "cores": 2, "platform": "", "python": "", "versions": {}, "matmul_gflops": 1}
EMPTY: dict = {"machine": MACHINE, "speed": [], "memory": [], "growth": [], "compile": []}


def page(mib: dict[tuple, float]) -> list[str]:
    """Return the lines on how memory grows."""
    report = EMPTY | {"growth": memory.growth(mib)}
    return [line for line in markdown(report).splitlines() if " to " in line and "|" in line]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (2.0, 8.0, "4.0 x | linear"),
        (2.0, 2.0, "1.0 x | linear"),
        (2.0, -1.0, "-0.5 x | linear"),
        (2.0, 32.0, "16.0 x | NOT linear"),
        (0.0, 8.0, "from nothing | -"),
        (-1.0, 8.0, "from nothing | -"),
    ],
)
def test_growth_is_judged_by_a_quarter_of_the_length(before, after, shown):
    mib = {("torch", "causal", 1024, True): before, ("torch", "causal", 4096, True): after}
    assert page(mib) == [f"| torch causal T=1024 to 4096 + backward | {shown} |"]


def test_growth_compares_one_call_with_itself():
    mib = {("torch", "causal", 1024, False): 1.0, ("torch", "causal", 4096, True): 2.0}
    assert page(mib | {("jax", "causal", 16384, True): 3.0}) == []


def test_page_states_what_a_window_may_take():
    row = {"work": "numpy window T=32768", "mib": 25.0, "at_most": memory.AT_MOST["window"]}
    report = EMPTY | {"memory": [row]}
    assert "| numpy window T=32768 | 25.0 | 64 |" in markdown(report).splitlines()


def test_memory_of_a_matrix_is_seen(monkeypatch):
    numpy = memory.extra("numpy", "causal", 1024, False)
    attn = pytest.importorskip("attn_numpy")
    monkeypatch.setattr(attn, "attention", lambda *x, **o: attn.attention_steps(*x, **o).output)
    assert numpy < 4 < memory.extra("numpy", "causal", 1024, False), "1024 x 1024 floats are 4 MiB"


def test_a_word_that_matches_no_row_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "cobol"])
    assert "--only must match a row: got cobol" in capsys.readouterr().err


# Accelerators: rows, reasons, and whether what was measured was right


def test_memory_that_cannot_be_measured_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MARKS", tmp_path / "none")
    assert memory.extra("torch", "causal", 1024, False) is None
    row = {"work": "torch causal T=1024", "mib": None, "at_most": None}
    assert "| torch causal T=1024 | not measured here |  |" in markdown(EMPTY | {"memory": [row]})
    cases = {("torch", "causal", length, True): None for length in (1024, 4096)}
    assert memory.growth(cases) == []


def test_benchmarks_without_rich_say_what_to_install():
    code = "import sys; sys.modules['rich'] = None; import benchmarks.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "the benchmarks need rich: python -m pip install rich\n"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_rows_cover_every_kind_dtype_shape_and_pass_once(backend):
    found = accelerator.rows(backend)
    assert len(set(found)) == len(found)
    eager = [row for row in found if row.work != "decode" and not row.compiled]
    assert len(eager) == len(accelerator.KINDS) * len(accelerator.DTYPES) * 2 * 2
    decode = [row for row in found if row.work == "decode"]
    assert {row.shape[2] for row in decode} == {8192}
    assert sum(row.compiled for row in found) == (len(eager) if backend == "torch" else 0)


ROW = accelerator.Row("padded", "float32", (2, 1, 24, 8))


def textbook(row=ROW, dtype=np.float32) -> np.ndarray:
    """Return the row's output of its last head, in one precision."""
    query, key, value, _ = (array[-1, -1].astype(dtype) for array in given(row.shape))
    scores = query @ key.T / dtype(np.sqrt(row.shape[3]))
    hidden = ~accelerator.seen(row.work, row.shape)[-1, 0]
    scores[np.broadcast_to(hidden, scores.shape)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def call(values, delay: float = 0.0):
    """Return what makes a call with such values."""

    def run():
        time.sleep(delay)
        return values

    return lambda: accelerator.Call(run, lambda result: [result])


def test_row_has_times_and_ratios_where_values_are_right():
    rival = call(textbook(dtype=np.float64), 0.004)
    found = accelerator.measure(ROW, {"ours": call(textbook(), 0.001), "slow": rival}, 0.01)
    assert found["ours"]["ms"] >= 1
    assert found["rivals"]["slow"]["ratio"] > 1.5


@pytest.mark.parametrize("wrong", [np.nan, 0.01])
def test_rival_whose_values_are_wrong_has_no_ratio(wrong):
    values = textbook()
    values[3, 2] += wrong
    found = accelerator.measure(ROW, {"ours": call(textbook()), "bad": call(values)}, 0.01)
    assert found["rivals"]["bad"].keys() == {"disagrees"}
    assert "output at (3, 2): expected" in found["rivals"]["bad"]["disagrees"]
    assert "ms" in found["ours"]


def test_row_whose_own_values_are_wrong_shows_no_ratio():
    makers = {"ours": call(textbook() * 1.01), "good": call(textbook())}
    found = accelerator.measure(ROW, makers, 0.01)
    assert found["ours"].keys() == {"disagrees"}
    assert "ratio" not in found["rivals"]["good"]


def test_rival_that_refuses_is_written_with_its_reason():
    def refuse():
        raise RuntimeError("CUDA out of memory. Tried to allocate 8 GiB")

    found = accelerator.measure(ROW, {"ours": call(textbook()), "large": refuse}, 0.01)
    assert found["rivals"] == {"large": {"refused": "out of memory"}}


def test_reason_of_a_kernel_is_the_warning_that_tells_it():
    told = [
        "Memory efficient kernel not used because: (Triggered internally at a.cpp:1)",
        "Memory Efficient attention has been runtime disabled. (Triggered internally at a.cpp:2)",
        "Flash attention kernel not used because: (Triggered internally at a.cpp:3)",
        "Flash Attention does not support non-null attn_mask. (Triggered internally at a.cpp:4)",
        "CuDNN attention has been runtime disabled. (Triggered internally at a.cpp:5)",
    ]
    error = RuntimeError("No available kernel. Aborting execution.")
    assert accelerator.reason(error, told) == "Flash Attention does not support non-null attn_mask."
    assert accelerator.reason(error, []) == "No available kernel"
    assert accelerator.reason(KeyError("x"), []) == "KeyError: 'x'"


@pytest.mark.parametrize("work", accelerator.KINDS)
def test_gradients_of_the_textbook_are_those_of_torch(work):
    shape = (2, 1, 24, 8)
    row = accelerator.Row(work, "float32", shape, backward=True)
    leaves = [torch.from_numpy(a[-1, -1]).double().requires_grad_() for a in given(shape)[:3]]
    query, key, value = leaves
    visible = torch.from_numpy(accelerator.seen(work, shape)[-1, 0])
    scores = (query @ key.mT / 8**0.5).masked_fill(~visible, -torch.inf)
    grad = torch.from_numpy(given(shape)[3][-1, -1]).double()
    found = torch.autograd.grad(scores.softmax(-1) @ value, leaves, grad)
    for (name, exact, allowed), gradient in zip(
        accelerator.expected(row, None), found, strict=True
    ):
        np.testing.assert_allclose(exact, gradient.numpy(), atol=1e-12, err_msg=name)
        assert (allowed[exact != 0] > 0).all() and allowed.max() < 1e-3
