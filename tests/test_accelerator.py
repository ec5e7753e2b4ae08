"""The accelerator's command: what it chooses, how it divides time, what it writes when cut off."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import accelerator, accelerator_lines, boxed, devices, suite_order
from tools.accelerator_page import page

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "tools" / "accelerator.py")]
GPU = "NVIDIA H100 80GB HBM3"


def report(*found: dict, **more) -> dict:
    return {"versions": {}, "devices": [{"kind": "cpu", "index": 0, "name": "cpu"}, *found], **more}


def gpu(index: int = 0, name: str = GPU) -> dict:
    return {"kind": "cuda", "index": index, "name": name, "memory": 79.2}


def written(folder: Path) -> tuple[list[dict], str]:
    lines = (folder / "cpu.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines], (folder / "cpu.md").read_text("utf-8")


# Which devices


def test_every_accelerator_of_another_name_is_chosen_once():
    found = {
        "torch": report(gpu(0), gpu(1), gpu(2, "NVIDIA A100")),
        "jax": report(gpu(0), gpu(1), gpu(2, "NVIDIA A100")),
    }
    first, second = devices.choose(found, "auto")
    assert (first.name, first.index, first.count) == (GPU, 0, 2)
    assert (second.name, second.index, second.count) == ("NVIDIA A100", 2, 1)
    assert first.backends == second.backends == ["torch", "jax"]


def test_cpu_is_no_accelerator_but_can_be_asked_for():
    found = {"numpy": report(), "torch": report()}
    assert devices.choose(found, "auto") == []
    (chosen,) = devices.choose(found, "cpu")
    assert chosen.backends == ["numpy", "torch"]


@pytest.mark.parametrize(
    ("backend", "told", "why"),
    [
        ("jax", report(), "jax does not find NVIDIA H100 80GB HBM3; it finds: cpu"),
        ("jax", report(why="jax is not installed"), "jax is not installed"),
        ("numpy", report(), "NumPy computes on the CPU only"),
    ],
)
def test_backend_that_cannot_run_says_why(backend, told, why):
    (chosen,) = devices.choose({"torch": report(gpu()), backend: told}, "auto")
    assert chosen.backends == ["torch"]
    assert devices.absent(backend, told, chosen) == why


def test_framework_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert devices.ask("torch")["why"] == "torch is not installed"


def test_framework_that_breaks_is_told(monkeypatch):
    def broken():
        raise RuntimeError("libcuda is too old\nand more")

    monkeypatch.setitem(devices.FIND, "torch", broken)
    assert devices.ask("torch")["why"] == "torch cannot be asked: libcuda is too old"


def test_different_cuda_devices_are_seen_one_by_one():
    found = {"torch": report(gpu(0), gpu(1, "NVIDIA A100"))}
    both = devices.choose(found, "auto")
    seen = [devices.environment({}, one, both)["CUDA_VISIBLE_DEVICES"] for one in both]
    assert seen == ["0", "1"]
    base = {"CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"}
    assert devices.environment(base, both[1], both)["CUDA_VISIBLE_DEVICES"] == "GPU-bb"
    assert devices.environment(base, both[0], both[:1]) == base | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false"
    }


def test_preallocation_is_off_unless_asked_for():
    (chosen,) = devices.choose({"jax": report(gpu())}, "auto")
    kept = {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
    assert devices.environment(kept, chosen, [chosen]) == kept


# Time


def test_time_is_divided_by_shares_and_no_more_than_there_is():
    assert accelerator.boxes([1, 3], 200) == [50, 150]
    assert sum(accelerator.boxes([25, 35, 22, 18], 470)) == pytest.approx(470)


def test_suites_come_before_benchmarks():
    (chosen,) = devices.choose({"torch": report(gpu()), "jax": report(gpu())}, "auto")
    order = [(p.what, p.backend) for p in accelerator.parts_of([chosen], {"suite", "bench"})]
    assert order == [("suite", "torch"), ("suite", "jax"), ("bench", "torch"), ("bench", "jax")]
    only = accelerator.parts_of([chosen], {"bench"})
    assert {part.what for part in only} == {"bench"}


def test_child_and_its_children_end_with_the_box(tmp_path):
    """The child starts another that would write later, and both refuse to end when asked."""
    late = tmp_path / "late"
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    inner = f"{deaf}; time.sleep(8); open({str(late)!r}, 'w', encoding='utf-8')"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}]); {deaf}"
    command = [sys.executable, "-c", f"{outer}; time.sleep(60)"]
    boxes = {"cwd": tmp_path, "env": dict(os.environ), "log": tmp_path / "log"}
    done = boxed.run(command, 1.5, **boxes)
    assert done.cut and done.status != 0
    assert done.seconds < 1.5 + boxed.GRACE + 2
    time.sleep(3)
    assert not late.exists()


def test_child_that_ends_by_itself_was_not_cut(tmp_path):
    boxes = {"cwd": tmp_path, "env": dict(os.environ), "log": tmp_path / "log"}
    done = boxed.run([sys.executable, "-c", "print('words'); exit(3)"], 30, **boxes)
    assert (done.status, done.cut) == (3, False)
    assert accelerator_lines.last_words(tmp_path / "log") == "words"


def test_first_case_of_each_test_comes_first_and_compiling_last():
    one, two = (lambda: None), (lambda: None)
    make = lambda name, function: SimpleNamespace(name=name, function=function)  # noqa: E731
    items = [make("a[0]", one), make("a[1]", one), make("compiled[0]", two), make("b[0]", two)]
    items += [make("b[1]", two)]
    names = [item.name for item in suite_order.ordered(items)]
    assert names == ["a[0]", "a[1]", "b[0]", "b[1]", "compiled[0]"]


# What is kept and shown


def test_slug_is_a_file_name():
    assert accelerator.slug(GPU) == "nvidia-h100-80gb-hbm3"
    assert accelerator.slug("注意") == "device"


def test_half_a_line_is_left_out(tmp_path):
    path = tmp_path / "report.jsonl"
    path.write_text('{"type": "header"}\n{"type": "result", "case', "utf-8")
    assert accelerator_lines.read(path) == [{"type": "header"}]


def result(clause: str, outcome: str, used: float | None, message: str = "") -> dict:
    case = f"test_it[{clause}]"
    about = {"clause": clause, "subject": "torch", "device": "cuda", "what": "output"}
    about |= {"case": case, "test": case, "took": None, "seconds": 0.5, "message": message}
    return {"type": "result", "outcome": outcome, "used": used, **about}


def lines(results: list[dict], ended: str = "whole", of: int = 3) -> list[dict]:
    """Return a device's lines with one suite of torch."""
    about = {"type": "run", "device": GPU, "kind": "cuda", "rehearsal": False, "memory": 79.2}
    about |= {"count": 1, "driver": "580.1", "platform": "Linux", "cores": 16, "budget": 480.0}
    about |= {"versions": {"torch": "2.11.0+cu130"}, "date": "2026-01-01", "options": []}
    about |= {"wanted": ["bench", "suite"]}
    wrong = [r for r in results if r["outcome"] in accelerator_lines.WRONG]
    counts = {o: sum(r["outcome"] == o for r in results) for o in ("conforms", "differs")}
    part = {"type": "part", "what": "suite", "backend": "torch", "ended": ended, "status": 0}
    part |= {"seconds": 9.0, "cases": len(results), "of": of, "wrong": len(wrong)}
    part |= {"counts": {o: n for o, n in counts.items() if n}}
    by_clause = accelerator_lines.by_clause("torch", results)
    absent = {"type": "absent", "backend": "jax", "why": "jax is not installed"}
    return [about, absent, part, *by_clause, *wrong, {"type": "end", "seconds": 99.0}]


RIGHT = [result("EMPTY-2", "conforms", 0.25), result("EMPTY-2", "conforms", 0.75)]
WRONG = result("CAUSE-1", "differs", None, "output at (0, 1): expected 1, got 2|3\nmore")


def test_page_says_device_versions_clauses_and_worst_errors():
    text = page(lines([*RIGHT, result("EMPTY-1", "conforms", None)]))
    for words in (
        f"# {GPU}\n",
        "in 99 s of 480 s",
        "- jax was not run: jax is not installed.",
        "- torch, suite: ran whole in 9 s, 3 of 3 cases.",
        "| device | NVIDIA H100 80GB HBM3, 79 GiB |",
        "| driver | 580.1 |",
        "torch 2.11.0+cu130",
        "| torch | 3 of 3 | 3 | 0 | 0 | 0 | 0 | test_it[EMPTY-2]: output |",
        "| empty | 2 of 2 | 0.75 |",
    ):
        assert words in text, text
    assert "rehearsal" not in text and "gets wrong" not in text


def test_page_shows_what_differs_and_the_run_fails():
    own = lines([*RIGHT, WRONG])
    text = page(own)
    assert "### What torch gets wrong" in text
    row = r"| CAUSE-1 | differs | test_it[CAUSE-1] | output at (0, 1): expected 1, got 2\|3 |"
    assert row in text, text
    assert "| causal | 0 of 1 |" in text
    assert not accelerator_lines.right(own)
    assert accelerator_lines.right(lines(RIGHT))


def test_page_of_a_suite_that_was_cut_off_says_how_far_it_came():
    own = lines(RIGHT, ended="cut off", of=1645)
    assert "- torch, suite: **cut off** after 9 s, 2 of 1645 cases." in page(own)
    assert not accelerator_lines.right(own)


def test_page_of_a_run_without_an_end_says_so():
    assert "has not ended yet, or was cut off" in page(lines(RIGHT)[:-1])


def test_should_clause_fails_no_run():
    own = lines(RIGHT)
    clause = next(line for line in own if line["type"] == "clause")
    clause["counts"] = {"differs": 1}
    assert not accelerator_lines.right(own)
    clause["level"] = "SHOULD"
    assert accelerator_lines.right(own)


def bench(ours: dict, rivals: dict, compiled: bool = False) -> dict:
    about = {"type": "bench", "backend": "torch", "work": "causal", "dtype": "float32"}
    about |= {"shape": [8, 16, 4096, 64], "backward": False, "compiled": compiled}
    return about | {"ours": ours, "rivals": rivals, "seconds": 1.0}


def test_page_shows_the_floor_that_is_missed():
    rows = {"type": "rows", "backend": "torch", "names": ["a"]}
    slow, fast = ({"ms": 2.0, "ratio": ratio, "floor": 0.95} for ratio in (0.9, 0.96))
    row = bench({"ms": 2.2, "mib": 64.0}, {"flash": slow, "cudnn": fast})
    assert "| 2.00 (0.90, **below 0.95**) | 2.00 (0.96) |" in page([*lines(RIGHT)[:-1], rows, row])


def test_page_shows_times_refusals_and_wrong_values():
    rows = {"type": "rows", "backend": "torch", "names": ["a", "b", "the last row"]}
    fast = {"ms": 2.0, "mib": 3.0, "ratio": 2.0, "low": 1.9, "high": 2.1}
    rivals = {"flash": {"refused": "needs 16 bits"}, "cudnn": {"disagrees": "output: NaN"}}
    first = bench({"ms": 1.0, "mib": 64.0}, rivals | {"math": fast})
    second = bench({"ms": 1.1, "mib": 64.0}, {"flex": fast | {"ratio": 1.8}}, compiled=True)
    own = [*lines(RIGHT)[:-1], rows, first, second]
    text = page(own)
    assert "| work | dtype | pass | ours | MiB | flash | cudnn | math | flex |" in text
    cells = "| refuses [1] | **wrong** [2] | 2.00 (2.00) | 2.00 (1.80) |"
    assert f"| causal | float32 | forward | 1.00 | 64.00 {cells}" in text, text
    assert "1. needs 16 bits\n2. output: NaN" in text
    assert (
        "1 of 3 rows of torch were not measured: the time box ended before 'the last row'" in text
    )
    assert accelerator_lines.right(own)  # a rival that is wrong is not our fault
    assert not accelerator_lines.right([*own, bench({"disagrees": "output"}, {})])


# The command, from end to end, on the CPU


def command(out: Path, *words: str, seconds: int = 60) -> subprocess.CompletedProcess:
    given = [*COMMAND, "--device=cpu", f"--out={out}", f"--seconds={seconds}", *words]
    env = os.environ | {"PYTHONPATH": str(out)}
    return subprocess.run(given, env=env, capture_output=True, text=True, check=False, timeout=150)


def test_rehearsal_runs_the_suite_and_the_benchmarks(tmp_path):
    words = ["--backend=torch", "--backend=jax", "--", "--clause=CAUSE-1"]
    done = command(tmp_path, *words, seconds=120)
    own, text = written(tmp_path)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{text}"
    assert own[0]["rehearsal"] and own[-1]["type"] == "end"
    for backend in ("torch", "jax"):
        mine = [line for line in own if line.get("backend") == backend]
        (suite, *_), (measured, *_) = (
            [line for line in mine if line["type"] == kind] for kind in ("part", "bench")
        )
        assert suite["ended"] == "whole" and suite["counts"] == {"conforms": suite["of"]}
        assert measured["ours"]["ms"] > 0 and measured["work"] == "causal"
        assert any("ms" in rival and "ratio" in rival for rival in measured["rivals"].values())
    assert "**This is a rehearsal**" in text
    assert "- numpy was not run: it was not asked for." in text


def test_suite_that_outlasts_its_box_leaves_what_it_has(tmp_path):
    slow = "import time\ndef pytest_runtest_setup(): time.sleep(0.5)\n"
    (tmp_path / "slow.py").write_text(slow, "utf-8")  # a plugin of pytest
    words = ["--suite", "--backend=numpy", "--", "-p", "slow"]
    done = command(tmp_path, *words, seconds=30)
    own, text = written(tmp_path)
    (suite,) = (line for line in own if line["type"] == "part")
    assert done.returncode == 1
    assert suite["ended"] == "cut off", f"{suite}{done.stderr}"
    assert 0 < suite["cases"] < suite["of"]
    assert f"**cut off** after {suite['seconds']:.0f} s, {suite['cases']} of {suite['of']}" in text
    assert "## Conformance" in text and own[-1]["seconds"] < 31


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a process is ended without being asked")
def test_run_that_is_ended_ends_its_children_and_leaves_a_page(tmp_path):
    given = [*COMMAND, "--device=cpu", f"--out={tmp_path}", "--suite", "--backend=numpy"]
    run = subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (tmp_path / "cpu.md").exists() and written(tmp_path)[0][1:][-1].get("type") == "clause":
            break
        time.sleep(0.2)
    else:
        pytest.fail("no result of the suite is shown while it runs")
    run.terminate()
    assert run.wait(30) == 143
    own, text = written(tmp_path)
    (suite,) = (line for line in own if line["type"] == "part")
    assert suite["ended"] == "running" and suite["cases"] > 0
    assert own[-1]["type"] != "end"
    assert "has not ended yet, or was cut off" in text
    assert "suite: **still running, or the whole run was cut off**" in text
    size = lambda: sum(p.stat().st_size for p in accelerator.WORK.glob("cpu-suite-numpy.json*"))  # noqa: E731
    before = size()
    time.sleep(2)
    assert size() == before, "the suite goes on without the run that began it"


def test_suite_that_refuses_is_a_failure_with_its_reason(tmp_path):
    done = command(tmp_path, "--suite", "--backend=numpy", "--", "--clause=COBOL-1")
    _, text = written(tmp_path)
    assert done.returncode == 1
    assert "numpy, suite: **failed** with exit status 4: `" in text
    assert "COBOL-1" in text


def test_rehearsal_is_not_written_among_the_results():
    results = ROOT / "docs" / "results"
    assert accelerator.parse([]).out == results
    assert results not in accelerator.parse(["--device", "cpu"]).out.parents
    assert accelerator.parse(["--device", "cpu"]).out != results


def test_device_that_nobody_has_is_refused(tmp_path):
    done = command(tmp_path, "--device=tpu")
    assert done.returncode == 2
    assert "no device to run on: got --device tpu" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--seconds", "5"], "--seconds must be at least 30: got 5"),
        (["--backend", "cobol"], "--backend must be one of numpy, torch, jax: got cobol"),
    ],
)
def test_wrong_options_are_refused(words, rule, capsys):
    with pytest.raises(SystemExit):
        accelerator.parse(words)
    assert rule in capsys.readouterr().err
