"""Adapters that end the process, hang, move or shout: each is named, and none makes a green run."""

import json
import re
import shlex
from datetime import datetime
from pathlib import Path

import pytest
from test_command_line import cli, refused, small_suite
from test_known import ADAPTER, CONFORMING

from conformance.reports.report import read, results

ONE = ["--case", "test_zero_gives_exact_zeros[EMPTY-1-float32]"]
TWO = ["--clause", "EMPTY-1", "--case", "test_zero_gives_exact_zeros[EMPTY-1-float64]"]
BODY = "        scores = query @"


def misbehaving(statement: str, where: str = BODY) -> str:
    """Return a right adapter that runs a statement in each call, or before another line."""
    return ADAPTER.replace(where, f"{' ' * (len(where) - len(where.lstrip()))}{statement}\n{where}")


def run(folder: Path, text: str, *options: str, **how):
    (folder / "adapter.py").write_text(text, "utf-8")
    command = "smoke" if "smoke" in options else "run"
    options = tuple(option for option in options if option != "smoke")
    return cli(command, "--subject", "adapter:Subject", *options, cwd=folder, **how)


def report_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Return outcome and message of each case of the last report, which must be whole."""
    found = results(read(folder / ".conformance/report.jsonl"))
    return {r["case"]: (r["outcome"], r["message"]) for r in found}


LARGE = "query.dtype == np.float32 and query.shape[2] == 5 and "
EMPTY_1 = ["--clause", "EMPTY-1", "-k", "exact_zeros"]
ENDS = {
    "status_0": ("__import__('os')._exit(0)", "the process ended with status 0 during this case"),
    "signal": (
        "__import__('os').kill(__import__('os').getpid(), 9)",
        "the process ended by SIGKILL during this case",
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_case_that_ends_the_process_is_an_error_and_the_rest_is_run(tmp_path, how):
    statement, message = ENDS[how]
    text = misbehaving(f"{LARGE}not (T := query.shape[0] == 2) and {statement}")
    done = run(tmp_path, text, *EMPTY_1)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    found = report_of(tmp_path)
    ended = {case for case, told in found.items() if told == ("error", message)}
    assert ended and len(ended) < len(found), found
    assert all(f"{case}: {message}" in done.stderr for case in ended)
    others = {outcome for case, (outcome, _) in found.items() if case not in ended}
    assert "conforms" in others and others <= {"conforms", "not offered"}
    path = tmp_path / ".conformance/report.jsonl"
    header, *_, footer = read(path)
    assert footer["exit"] == 1
    began = datetime.fromisoformat(header["started"]).timestamp()
    assert footer["seconds"] > path.stat().st_mtime - began - 1, "of the last process alone"
    assert "1 error" in done.stdout or f"{len(ended)} error" in done.stdout
    lines = done.stderr.splitlines()
    places = [n for n, text in enumerate(lines) if text.endswith(message)]
    rest = "another process runs the other cases, and pytest's last line counts only these"
    assert lines[places[-1] + 2] == rest
    command = shlex.split(lines[places[-1] + 1].removeprefix("run just this: "))
    again = cli(*command[3:], cwd=tmp_path)
    assert again.returncode == pytest.ExitCode.TESTS_FAILED and message in again.stderr


@pytest.mark.parametrize("status", [0, 1, 5])
def test_adapter_that_ends_the_process_when_imported_is_no_pass(tmp_path, status):
    done = run(tmp_path, f"import os\nos._exit({status})\n{ADAPTER}", *ONE)
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    told = f"outside a case: the process ended with status {status}\n"
    assert done.stderr == f"{told}no verdict: the run was cut off: got no result\n"


def test_adapter_that_ends_the_process_again_and_again_has_no_verdict(tmp_path):
    done = run(tmp_path, misbehaving("__import__('os')._exit(0)"), "smoke")
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR, done.stdout
    assert "a process ended 5 times: the run is given up" in done.stderr
    assert done.stderr.endswith("cut off: got .conformance/report.jsonl, without a footer\n")
    lines = (tmp_path / ".conformance/report.jsonl").read_text("utf-8").splitlines()
    assert sum(json.loads(line).get("outcome") == "error" for line in lines) == 5


ONCE = """
        from pathlib import Path
        try:
            Path(__file__).with_name("died").touch(exist_ok=False)
            __import__("os")._exit(0)
        except FileExistsError:
            pass
"""


def test_whole_run_goes_on_behind_a_worker_that_died(tmp_path):
    text = ADAPTER.replace(BODY, f"{ONCE.strip()}\n{BODY}".replace("from", "        from", 1))
    root = small_suite(tmp_path)
    done = run(tmp_path, text, root=root)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    first = report_of(tmp_path)
    (tmp_path / "died").touch()
    run(tmp_path, text, root=root)
    second = report_of(tmp_path)
    (died,) = (case for case in first if first[case] != second.get(case))
    assert first.keys() == second.keys()
    assert first[died][0] == "error" and "crashed while running" in first[died][1]


# The second holds Python's lock all the while: nothing in Python could end it.
HANGS = ["__import__('time').sleep(600)", "sum(range(10**12))"]


@pytest.mark.parametrize("statement", HANGS, ids=["sleeps", "holds_the_lock"])
@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n1"]], ids=["alone", "worker"])
def test_case_without_an_answer_in_time_says_where_it_was(tmp_path, statement, workers):
    text = misbehaving(f"{LARGE}query.shape[0] == 3 and {statement}")
    done = run(tmp_path, text, *EMPTY_1, "--timeout", "1.5", *workers)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    line = text.splitlines().index(next(x for x in text.splitlines() if statement in x)) + 1
    message = f"no answer within 1.5 s (--timeout), at {tmp_path}/adapter.py, line {line}, in "
    found = report_of(tmp_path)
    late = [told for told in found.values() if told[0] == "error"]
    assert late and {told for _, told in late} == {f"{message}attention"}, found
    told = re.findall(
        "run just this: .* --case '(.*)' --timeout 1.5$", f"{done.stdout}{done.stderr}", re.M
    )
    assert set(told) == {case for case, (outcome, _) in found.items() if outcome == "error"}
    assert "conforms" in {outcome for outcome, _ in found.values()}


def test_time_limit_is_a_cases_own(tmp_path):
    done = run(tmp_path, misbehaving("__import__('time').sleep(0.7)"), *EMPTY_1, "--timeout", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout.split(" deselected in ")[1].split("s")[0]) > 2


MOVES = ["made", "called"]


@pytest.mark.parametrize("when", MOVES)
@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n1"]], ids=["alone", "worker"])
def test_adapter_that_changes_the_folder_is_tested_all_the_same(tmp_path, when, workers):
    move = "__import__('os').makedirs('x', exist_ok=True); __import__('os').chdir('x')"
    text = misbehaving(move)
    if when == "made":
        text = ADAPTER.replace(
            "    def att", f"    def __init__(self):\n        {move}\n\n    def att"
        )
    (tmp_path / "known.toml").write_text(CONFORMING, "utf-8")
    only = ["--clause", "EMPTY-1", *workers]
    done = run(tmp_path, text, *only, "--known", "known.toml", "--report", "new/report.jsonl")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "out of known.toml" in done.stdout and "report: new/report.jsonl" in done.stdout
    assert results(read(tmp_path / "new/report.jsonl"))
    done = run(tmp_path, text, *only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conforms" in {outcome for outcome, _ in report_of(tmp_path).values()}


SCRIPT = "import argparse\nargparse.ArgumentParser().parse_args(['--checkpoint'])\n"


@pytest.mark.parametrize("text", [SCRIPT, "import sys\nsys.exit('no weights')\n"])
def test_adapter_that_calls_exit_when_imported_is_refused(tmp_path, text):
    done = run(tmp_path, text, *ONE)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    said = "ERROR: --subject adapter:Subject must be importable and say what it offers: got SystemE"
    assert said in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_adapter_that_calls_exit_when_called_differs_by_an_error(tmp_path):
    done = run(tmp_path, misbehaving("__import__('sys').exit(0)"), *ONE)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert set(report_of(tmp_path).values()) == {("error", "SystemExit: 0")}


def test_adapter_that_prints_is_tested_all_the_same(tmp_path):
    noise = "print('\\udcff', '\\x1b[2J', 'footer'); __import__('os').write(1, b'\\xff')"
    done = run(tmp_path, f"import os\n{noise}\n{misbehaving(noise)}", *ONE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(report_of(tmp_path).values()) == {("conforms", "")}


def test_threads_that_are_left_behind_do_not_keep_the_run(tmp_path):
    thread = "__import__('threading').Thread(target=__import__('time').sleep, args=(600,)).start()"
    done = run(tmp_path, misbehaving(thread), *ONE, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def counted(statement: str) -> str:
    """Return a right adapter that runs a statement when it has been called more than 3 times."""
    text = misbehaving(f"CALLS.append(1); len(CALLS) > 3 and {statement}")
    return f"CALLS = []\n{text}"


EARLY = {
    "expected_to_fail": ("__import__('pytest').xfail('no')", pytest.ExitCode.TESTS_FAILED),
    "leaves_pytest": ("__import__('pytest').exit('done', 0)", pytest.ExitCode.INTERNAL_ERROR),
}


@pytest.mark.parametrize("how", EARLY)
def test_adapter_that_plays_with_pytest_is_no_pass(tmp_path, how):
    statement, status = EARLY[how]
    done = run(tmp_path, counted(statement), "--clause", "EMPTY-1", "--clause", "ATT-1")
    assert done.returncode == status, done.stdout + done.stderr


def test_last_case_that_ends_the_process_is_an_error_in_a_whole_report(tmp_path):
    done = run(tmp_path, misbehaving("__import__('os')._exit(0)"), *ONE)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert {outcome for outcome, _ in report_of(tmp_path).values()} == {"error"}


AFTER = """
import threading, time, os
from pathlib import Path

def end():
    while not any("conforms" in x.read_text() for x in Path(".conformance").glob("report*")):
        time.sleep(0.001)
    os._exit(0)

threading.Thread(target=end, daemon=True).start()
"""


def test_case_that_has_its_result_is_not_counted_twice(tmp_path):
    linger = ADAPTER.replace(BODY, f"        __import__('time').sleep(0.2)\n{BODY}")
    only = ["--clause", "EMPTY-1", "-k", "exact_zeros"]
    done = run(tmp_path, f"{AFTER}{linger}", *only)
    lines = (tmp_path / ".conformance/report.jsonl").read_text("utf-8").splitlines()
    tests = [entry["test"] for entry in map(json.loads, lines) if entry["type"] == "result"]
    assert len(tests) == len(set(tests)), done.stdout
    assert done.returncode != 0


DIES_AS_A_WORKER = "import os\nif 'PYTEST_XDIST_WORKER' in os.environ: os._exit(0)\n"


def test_workers_that_cannot_start_are_named_and_the_cases_run(tmp_path):
    done = run(tmp_path, f"{DIES_AS_A_WORKER}{ADAPTER}", root=small_suite(tmp_path))
    assert "a worker has ended\nanother process runs the other cases" in done.stderr
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "conforms" in {outcome for outcome, _ in report_of(tmp_path).values()}


def test_import_without_an_end_is_ended(tmp_path):
    done = run(tmp_path, f"import time\ntime.sleep(600)\n{ADAPTER}", *ONE, "--timeout", "1")
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    where = f"{tmp_path}/adapter.py, line 2, in <module>"
    assert f"outside a case: no answer within 1 s (--timeout), at {where}\n" in done.stderr


@pytest.mark.parametrize("package", ["numpy", "pytest", "hypothesis", "ml_dtypes"])
def test_package_that_the_suite_cannot_do_without_is_named(tmp_path, package):
    (tmp_path / "adapter.py").write_text(ADAPTER, "utf-8")
    without = f"import sys\nsys.modules[{package!r}] = None"
    done = cli("run", "--subject", "adapter:Subject", cwd=tmp_path, first=without)
    refused(done, "the suite needs numpy, ml_dtypes, pytest, hypothesis: got no ", package)
    assert f"python -m pip install {package}" in done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
