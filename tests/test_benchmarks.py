"""The benchmarks' page and history: what they say of figures, which no test measures."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import accelerator, everyday, history, memory, sinks, steps, windows
from benchmarks.inputs import lengths
from benchmarks.measure import busy_cores, interleaved
from benchmarks.page import markdown, summary
from benchmarks.truth import given
from conformance.runs.run import cores

ROOT = Path(__file__).parents[1]

EMPTY: dict = {
    "schema": 2,
    "date": "2026-11-27",
    "commit": "0123456789ab",
    "machine": "2 cores",
    "python": "3.11.7",
    "versions": {"numpy": "2", "torch": "2", "jax": "0", "flax": "0"},
    "gflops": 100,
    "speed": [],
    "overhead": [],
    "memory": [],
    "growth": [],
    "compile": [],
}


def speed(ratio: float, floor: float | None) -> dict:
    """Return a made-up row of speed."""
    times = {"ours": 0.1, "theirs": 0.1 * ratio, "ratio": ratio, "low": ratio, "high": ratio}
    return {"work": "numpy causal", "against": "textbook", "floor": floor, "of_peak": 0.5} | times


def overhead(micros: float, limit: float) -> dict:
    """Return a made-up row of what a tiny call costs."""
    times = {"ours": 5e-6 + 1e-6 * micros, "theirs": 5e-6, "micros": micros, "at_most": limit}
    return {"work": "torch tiny", "against": "torch fused"} | times


MADE = EMPTY | {
    "speed": [speed(7.29, 8.0), speed(8.0, 8.0), speed(0.5, None)],
    "overhead": [overhead(33.0, 20.0), overhead(20.0, 20.0), overhead(-2.5, 20.0)],
    "memory": [
        {"work": "numpy window", "mib": 80.0, "at_most": 64},
        {"work": "torch window", "mib": None, "at_most": 64},
        {"work": "jax causal", "mib": 900.0, "at_most": None},
    ],
    "growth": [{"work": "jax causal T=1024 to 4096", "ratio": 16.0, "at_most": 8}],
    "compile": [{"work": "jax packed", "seconds": 12.5, "at_most": 10.0}],
}
GOOD = EMPTY | {"speed": [speed(8.01, 8.0)]}
MISSES = [
    "numpy causal against textbook: 7.29 is below the floor of 8.00 by 8.9%",
    "torch tiny against torch fused: 33.00 is above the limit of 20 by 65.0%",
    "numpy window: 80.00 is above the limit of 64 by 25.0%",
    "jax causal T=1024 to 4096: 16.00 is above the limit of 8 by 100.0%",
    "jax packed: 12.50 is above the limit of 10 by 25.0%",
]


def run(monkeypatch, tmp_path, report: dict, *words: str) -> int:
    """Run the command on made-up measurements."""
    monkeypatch.setattr(command, "measure", lambda *asked: report)
    return command.main(["--history", str(tmp_path / "runs.jsonl"), *words])


def test_page_marks_each_row_that_misses_its_floor_or_limit():
    lines = markdown(MADE).splitlines()
    count = (
        "**5 of the 8 rows that have a floor or a limit miss it; 1 more could not be measured.** "
        "Each of them says so in its row."
    )
    assert lines[2] == count
    marked = [line for line in lines if "below the" in line or "above the" in line]
    assert [line.split("|")[-2].strip() for line in marked[1:]] == [
        "**above the limit of 20 by 65.0%**",
        "**above the limit of 64 by 25.0%**",
        "**above the limit of 8 by 100.0%**",
        "**above the limit of 10 by 25.0%**",
    ]
    assert "| **below the floor of 8.00 by 8.9%** | 50% |" in marked[0]


@pytest.mark.parametrize(
    ("row", "cell"),
    [(speed(8.0, 8.0), "8.00"), (speed(0.5, None), "none")],
    ids=["at the floor", "no floor"],
)
def test_page_leaves_other_rows_unmarked(row, cell):
    text = markdown(EMPTY | {"speed": [row]})
    assert f"| {cell} | 50% |" in text
    assert "below the" not in text


def test_page_shows_short_times_in_microseconds():
    lines = markdown(MADE).splitlines()
    assert "| torch tiny | torch fused | 2.5 | 5.0 | **-2.5** | 20 |" in lines
    short = markdown(EMPTY | {"speed": [speed(1.0, 1.0) | {"ours": 1.23e-5, "theirs": 2e-3}]})
    assert "| 0.012 | 2.0 |" in short


def test_rows_that_were_not_measured_are_counted_apart():
    report = EMPTY | {
        "memory": [{"work": "torch window", "mib": None, "at_most": 64}],
        "growth": [{"work": "torch causal", "ratio": None, "at_most": 8}],
    }
    none = "0 of the 0 rows that have a floor or a limit miss it"
    assert summary(report) == f"{none}; 2 more could not be measured."
    assert summary(EMPTY) == f"{none}."


@pytest.mark.parametrize(
    ("report", "words", "status"),
    [(MADE, [], 0), (MADE, ["--enforce"], 1), (GOOD, [], 0), (GOOD, ["--enforce"], 0)],
)
def test_only_enforce_makes_a_miss_the_exit_status(monkeypatch, tmp_path, report, words, status):
    assert run(monkeypatch, tmp_path, report, *words) == status


def test_console_ends_with_the_misses_and_their_number(monkeypatch, tmp_path, capsys):
    run(monkeypatch, tmp_path, MADE)
    assert capsys.readouterr().out.splitlines()[-6:] == [*MISSES, summary(MADE)]


def test_each_run_adds_one_line_that_can_be_read_back(monkeypatch, tmp_path):
    page = tmp_path / "pages" / "page.md"
    for report in (MADE, GOOD):
        run(monkeypatch, tmp_path, report, "--page", str(page))
    assert history.read(tmp_path / "runs.jsonl") == [MADE, GOOD]
    assert page.read_text("utf-8") == markdown(GOOD) + "\n"


KEPT = {
    "whole": ([], "docs/benchmarks.jsonl"),
    "part": (["--only", "numpy causal"], None),
    "part_asked_for": (["--only", "numpy causal", "--history", "part.jsonl"], "part.jsonl"),
}


@pytest.mark.parametrize("name", KEPT)
def test_history_gets_whole_runs_and_what_is_asked_for(monkeypatch, tmp_path, name):
    words, path = KEPT[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "measure", lambda *asked: GOOD)
    assert command.main(words) == 0
    written = [str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*.jsonl")]
    assert written == ([path] if path else [])


def test_what_is_measured_has_the_shape_of_the_history(monkeypatch, tmp_path):
    made = command.Row("made", "up", 1.0, lambda: (int, int), 1.0)
    tiny = command.Row("made", "up", None, lambda: (int, int), at_most=5)
    monkeypatch.setattr(command, "matmul_peak", lambda: 1e9)
    monkeypatch.setattr(command.memory, "extra", lambda *case: case[2] / 3)
    monkeypatch.setattr(command.compiling, "seconds", lambda *case: 1 / 3)
    cases = [("jax", "causal", length, False) for length in (1024, 4096)]
    report = command.measure([made, tiny], cases, [("packed", 1024)], 0.001)
    history.append(tmp_path / "runs.jsonl", report)
    assert history.read(tmp_path / "runs.jsonl") == [report]
    parts = ("speed", "overhead", "memory", "growth", "compile")
    assert [len(report[part]) for part in parts] == [1, 1, 2, 1, 1]
    assert report["compile"][0]["seconds"] == 0.33333


def without(name: str) -> dict:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "Expecting property name"),
        ("[]", "schema must be one of 1, 2: got None"),
        (json.dumps(GOOD | {"schema": 3}), "schema must be one of 1, 2: got 3"),
        (json.dumps(without("commit")), "run must have the keys commit, compile, date"),
        (json.dumps(GOOD | {"extra": 1}), "run must have the keys .*: got .*, extra,"),
        (json.dumps(GOOD | {"date": 20261127}), "run.date must be str: got 20261127"),
        (json.dumps(GOOD | {"speed": {}}), "run.speed must be list: got {}"),
        (
            json.dumps(EMPTY | {"speed": [speed(1.0, 1.0) | {"ratio": None}]}),
            r"run.speed\[0\].ratio must be int or float: got None",
        ),
        (
            json.dumps(EMPTY | {"speed": [speed(float("nan"), 1.0)]}),
            "a number must be finite: got NaN",
        ),
    ],
    ids=["json", "list", "schema", "missing", "more", "kind", "no list", "no ratio", "nan"],
)
def test_line_of_another_shape_is_refused_by_its_number(tmp_path, line, told):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n", "utf-8")
    with pytest.raises(ValueError, match=rf"^runs\.jsonl, line 2: .*({told})"):
        history.read(path)


@pytest.mark.parametrize(("limit", "told"), [("1", ", OMP_NUM_THREADS=1,"), ("", " cores,")])
def test_machine_tells_a_limit_of_threads(monkeypatch, limit, told):
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    machine = history.origin()["machine"]
    assert told in machine
    assert bool(limit) == ("OMP_NUM_THREADS" in machine)


def test_report_of_another_shape_is_not_written(tmp_path):
    path = tmp_path / "runs.jsonl"
    with pytest.raises(ValueError, match="run must have the keys"):
        history.append(path, without("commit"))
    assert not path.exists()


def test_page_shows_a_run_of_the_history():
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    tables = [
        [line for line in page.splitlines() if line.startswith("|")]
        for page in (text, *map(markdown, history.read(ROOT / "docs/benchmarks.jsonl")))
    ]
    assert tables[0] in tables[1:], (
        "the tables of docs/benchmarks.md must be those of a line of docs/benchmarks.jsonl: "
        "run `python -m benchmarks --page docs/benchmarks.md`, and commit both files"
    )


def page(mib: dict[tuple, float]) -> list[str]:
    """Return the lines on how memory grows."""
    report = EMPTY | {"growth": memory.growth(mib)}
    return [line for line in markdown(report).splitlines() if " to " in line and "|" in line]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (2.0, 8.0, "4.0 x | 8"),
        (2.0, 2.0, "1.0 x | 8"),
        (2.0, -1.0, "-0.5 x | 8"),
        (2.0, 32.0, "16.0 x | **above the limit of 8 by 100.0%**"),
        (0.0, 8.0, "from nothing | 8"),
        (-1.0, 8.0, "from nothing | 8"),
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
        command.main(["--only", "cobol"])
    assert "--only must match a row: got cobol" in capsys.readouterr().err


# Rows and how they are measured


def values(result) -> list[np.ndarray]:
    parts = result if isinstance(result, tuple | list) else (result,)
    return [np.asarray(part) for part in parts]


SMALL = [row for row in everyday.rows() if row.during != busy_cores and "module" not in row.name]


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_both_calls_of_an_everyday_row_compute_the_same(row):
    ours, theirs = (values(call()) for call in row.make())
    if row.name.startswith("jax"):
        theirs = [x.swapaxes(1, 2) for x in theirs]
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-4)


def compute_the_same(row) -> None:
    """Check a row's calls against each other, in float32."""
    ours, theirs = (values(call()) for call in row.make())
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5, err_msg=row.against)


@pytest.mark.parametrize("at", range(len(sinks.rows())), ids=lambda at: sinks.rows()[at].name)
def test_both_calls_with_sinks_and_in_parts_compute_the_same(at, monkeypatch):
    monkeypatch.setattr(sinks, "LONG", (1, 3, 23, 8))
    monkeypatch.setattr(sinks, "WIDE", (3, 2, 7, 5))
    compute_the_same(sinks.rows()[at])


@pytest.mark.parametrize("at", range(len(windows.rows())), ids=lambda at: windows.rows()[at].name)
def test_both_steps_in_a_window_compute_the_same(at, monkeypatch):
    for name, size in (("BATCH", 3), ("CONTEXT", 23), ("RING", 5), ("EMBED", 12), ("HEADS", 2)):
        monkeypatch.setattr(windows, name, size)
    compute_the_same(windows.rows()[at])


def test_a_ring_goes_on_as_a_window_does(monkeypatch):
    monkeypatch.setattr(windows, "EMBED", 12)
    monkeypatch.setattr(windows, "HEADS", 2)
    made = windows.Window("numpy", 2, 9, 4)
    step, later = made.ring(), np.concatenate([made.x, made.x[:, -1:], made.x[:, -1:]], 1)
    step(), step()
    made.x = later
    np.testing.assert_allclose(step(), windows.prefix(made)(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [steps._half_torch, steps._half_jax])
def test_both_steps_in_bfloat16_compute_the_same(make, monkeypatch):
    monkeypatch.setattr(steps, "CONTEXT", 24)
    ours, theirs = (call() for call in make())
    eps = 2.0**-8
    bound = 16 * eps * float(abs(theirs).max())  # two roundings in each of eight products
    assert float(abs(ours - theirs).max()) <= bound


def test_names_of_rows_differ():
    found = command.every_row()
    names = [(row.name, row.against) for row in found]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("shape", everyday.PADDED)
def test_half_of_the_tokens_is_padding(shape):
    batch, _, length, _ = shape
    found = lengths(batch, length)
    assert max(found) == length and min(found) >= 1
    assert sum(found) / (batch * length) == pytest.approx(0.5, abs=0.5 / batch)


def test_short_call_is_made_many_times_between_two_looks_at_the_clock():
    count = iter(range(10**6))
    times = interleaved([lambda: next(count), lambda: time.sleep(0.003)], 0.0)
    assert [len(one) for one in times] == [5, 5]
    assert next(count) > 5 * 100 and max(times[0]) < 1e-3
    assert min(times[1]) >= 0.003


def test_other_processes_are_busy_meanwhile_and_gone_behind_an_error(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    def fail():
        with busy_cores():
            assert [process.poll() for process in started] == [None] * cores()
            raise KeyError

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyError):
        fail()
    assert all(process.returncode is not None for process in started)


# Accelerators: rows, reasons, and whether what was measured was right


def test_memory_that_cannot_be_measured_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MARKS", tmp_path / "none")
    assert memory.extra("torch", "causal", 1024, False) is None
    row = {"work": "torch causal", "mib": None, "at_most": None}
    assert "| torch causal | not measured here | none |" in markdown(EMPTY | {"memory": [row]})
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


def test_floors_are_those_of_long_calls_in_16_bits():
    for backend, works in (("torch", accelerator.FLOORS), ("jax", accelerator.FLOORS_OF_JAX)):
        told = [row for row in accelerator.rows(backend) if accelerator.floors(backend, row)]
        assert {row.work for row in told} == set(works)
        assert {row.dtype for row in told} == {"bfloat16"} and not any(r.compiled for r in told)
        assert {row.shape for row in told} <= {accelerator.LONG, (4, 8, accelerator.CONTEXT, 64)}


ROW = accelerator.AcceleratorRow("padded", "float32", (2, 1, 24, 8))


def textbook(row=ROW, dtype=np.float32) -> np.ndarray:
    """Return the row's output of its last head, in one precision."""
    query, key, value, _ = (array[-1, -1].astype(dtype) for array in given(row.shape))
    scores = query @ key.T / dtype(np.sqrt(row.shape[3]))
    hidden = ~accelerator.allowed(row.work, row.shape)[-1, 0]
    scores[np.broadcast_to(hidden, scores.shape)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def call(values, delay: float = 0.0):
    """Return what makes a call with such values."""

    def run():
        time.sleep(delay)
        return values

    return lambda: accelerator.TimedCall(run, lambda result: [result])


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
    row = accelerator.AcceleratorRow(work, "float32", shape, backward=True)
    leaves = [torch.from_numpy(a[-1, -1]).double().requires_grad_() for a in given(shape)[:3]]
    query, key, value = leaves
    allowed = torch.from_numpy(accelerator.allowed(work, shape)[-1, 0])
    scores = (query @ key.mT / 8**0.5).masked_fill(~allowed, -torch.inf)
    grad = torch.from_numpy(given(shape)[3][-1, -1]).double()
    found = torch.autograd.grad(scores.softmax(-1) @ value, leaves, grad)
    for (name, exact, tolerance), gradient in zip(
        accelerator.expected(row, None), found, strict=True
    ):
        np.testing.assert_allclose(exact, gradient.numpy(), atol=1e-12, err_msg=name)
        assert (tolerance[exact != 0] > 0).all() and tolerance.max() < 1e-3
