"""The suite in other people's environments: it runs there, and it says the truth."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_command_line import ROOT, cli, refused
from test_known import ADAPTER, ENTRY

from conformance.__main__ import main
from conformance.reports.report import read, results
from conformance.runs import run

ONE = ["--case", "test_zero_gives_exact_zeros[EMPTY-1-float32]"]
CHECK = ["run", "--subject", "adapter:Subject"]
EMPTIED = "(mask is not None and not mask.any(-1).all())"
WRONG = ADAPTER.replace("return weights /", f"return {EMPTIED} + weights /")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "adapter.py").write_text(ADAPTER, "utf-8")
    return tmp_path


def conforms(done: subprocess.CompletedProcess, folder: Path, said: str = "") -> None:
    """See that a run passed, wrote its report, and said nothing else than it should."""
    assert (done.returncode, done.stderr) == (0, said), done.stdout + done.stderr
    found = results(read(folder / ".conformance/report.jsonl"))
    assert "conforms" in {result["outcome"] for result in found}
    assert "report: .conformance/report.jsonl" in done.stdout


# A plugin as pytest-asyncio, pytest-benchmark or pytest-timeout may be: it warns at its start, and
# it has options of the same names as the suite's.
PLUGIN = """
import warnings, pytest

def pytest_addoption(parser):
    parser.addoption("--timeout", "--report", "--device", "--smoke")

def pytest_configure(config):
    warnings.warn(pytest.PytestDeprecationWarning("a setting is not set"))
"""


def test_plugins_of_the_environment_decide_nothing(folder):
    (folder / "noisy.py").write_text(PLUGIN, "utf-8")
    (folder / "noisy-1.0.dist-info").mkdir()
    points = folder / "noisy-1.0.dist-info/entry_points.txt"
    points.write_text("[pytest11]\nnoisy = noisy\n", "utf-8")
    (folder / "noisy-1.0.dist-info/METADATA").write_text("Name: noisy\nVersion: 1.0\n", "utf-8")
    settings = {"PYTEST_ADDOPTS": "--cov=mine -x", "PYTEST_PLUGINS": "noisy"}
    first = f"import sys\nsys.path.insert(0, {str(folder)!r})"
    conforms(cli(*CHECK, *ONE, cwd=folder, first=first, env=settings), folder)


def test_settings_of_pytest_in_the_folder_decide_nothing(folder):
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --cov=mine\n", "utf-8")
    (folder / "conftest.py").write_text("raise RuntimeError\n", "utf-8")
    conforms(cli(*CHECK, *ONE, cwd=folder), folder)


WARNS = "import warnings\nwarnings.warn('soon', DeprecationWarning)\n"
NUMPY_WARNS = """
import numpy, warnings
array = numpy.array

def warn(*inputs, **options):
    warnings.warn("soon", FutureWarning)
    return array(*inputs, **options)

numpy.array = warn
"""


def test_warnings_of_another_package_decide_nothing(folder):
    (folder / "adapter.py").write_text(f"{WARNS}{ADAPTER}", "utf-8")
    conforms(cli(*CHECK, *ONE, cwd=folder, first=NUMPY_WARNS), folder)


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n1"]], ids=["alone", "worker"])
def test_optimized_python_tests_as_any_other(folder, level, workers):
    (folder / "adapter.py").write_text(WRONG, "utf-8")
    both = ["--clause", "EMPTY-1", "--clause", "CAUSE-1", *workers]
    done = cli(*CHECK, *both, cwd=folder, env={"PYTHONOPTIMIZE": level})
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    found = results(read(folder / ".conformance/report.jsonl"))
    of = {c: {r["outcome"] for r in found if r["clause"] == c} for c in ("EMPTY-1", "CAUSE-1")}
    assert "differs" in of["EMPTY-1"] and of["CAUSE-1"] <= {"conforms", "not offered"}, of
    assert "conforms" in of["CAUSE-1"], of
    assert all(": expected " in r["message"] for r in found if r["outcome"] == "differs"), found


def test_mutants_are_refused_where_their_sentences_are_gone():
    command = [sys.executable, "-OO", "-m", "tools.mutants", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a mutant's sentence is its docstring: got Python's option -OO" in done.stderr


def test_optimization_by_an_option_reaches_the_cases(folder):
    (folder / "adapter.py").write_text(f"assert False\n{ADAPTER}", "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-O", "-m", "conformance", *CHECK, *ONE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


CONSOLES = {
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
}


@pytest.mark.parametrize("console", CONSOLES)
def test_console_without_a_letter_gets_the_verdict(folder, console):
    (folder / "adapter.py").write_text(ADAPTER.replace('"mine"', '"注意…"'), "utf-8")
    done = cli(*CHECK, *ONE, cwd=folder, env=CONSOLES[console])
    conforms(done, folder)
    assert r"\u6ce8\u610f" in done.stdout
    done = cli("summary", ".conformance/report.jsonl", cwd=folder, env=CONSOLES[console])
    assert (done.returncode, done.stderr) == (0, "")


def test_folder_that_cannot_be_written_leaves_the_report_elsewhere(folder):
    (folder / ".conformance").touch()  # a read-only folder refuses in the same way, but not root
    done = cli(*CHECK, *ONE, cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    path = Path(done.stdout.rpartition("report: ")[2].splitlines()[0])
    assert path.parent != folder and results(read(path))
    shutil.rmtree(path.parent)


WAITS = """
        from pathlib import Path
        from time import sleep
        Path(__file__).with_name(f"here-{__import__('os').getpid()}").touch()
        while len(list(Path(__file__).parent.glob("here-*"))) < 2:
            sleep(0.01)
"""


def test_two_runs_at_once_in_one_folder_do_not_meet(folder):
    body = "        scores = query @"
    text = ADAPTER.replace(body, f"{WAITS[1:]}{body}")
    (folder / "adapter.py").write_text(text, "utf-8")
    command = [sys.executable, "-m", "conformance", *CHECK, *ONE, "--timeout", "60"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, stderr=subprocess.STDOUT, **options) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        assert "1 test in " in out
    assert len(results(read(folder / ".conformance/report.jsonl"))) == 1
    assert len(list((folder / ".conformance").iterdir())) == 1


HELPFUL = ["jsonschema", "rich", "xdist"]
WITHOUT = f"import sys\nsys.modules |= dict.fromkeys({HELPFUL!r})"
PIP = "jsonschema, rich, pytest-xdist (python -m pip install jsonschema rich pytest-xdist)"


def test_suite_does_without_what_only_helps(folder):
    done = cli("smoke", *CHECK[1:], cwd=folder, first=WITHOUT)
    assert done.stderr == f"works without what is not installed: {PIP}\n"
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout  # NaN reaches its output
    assert "\nmine     cpu     empty  " in done.stdout
    whole = cli(
        "run", *CHECK[1:], "--clause", "EMPTY-1", "--clause", "ATT-1", cwd=folder, first=WITHOUT
    )
    assert whole.returncode == 0, whole.stdout
    found = results(read(folder / ".conformance/report.jsonl"))
    vectors = {r["outcome"] for r in found if "frozen_vector" in r["case"]}
    assert vectors == {"conforms", "not offered"}


@pytest.mark.parametrize("command", [["list"], ["--help"], ["run", "--help"]])
def test_what_needs_no_package_is_said_without_any(tmp_path, command):
    absent = [*HELPFUL, "pytest", "_pytest", "hypothesis", "ml_dtypes", "numpy"]
    first = f"import sys\nsys.modules |= dict.fromkeys({absent!r})"
    done = cli(*command, cwd=tmp_path, first=first)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "ATT-1" in done.stdout or "usage: conformance" in done.stdout


@pytest.mark.parametrize(("command", "package"), [("summary", "numpy"), ("known", "pytest")])
def test_command_that_needs_a_package_names_it(tmp_path, command, package):
    first = f"import sys\nsys.modules[{package!r}] = None"
    done = cli(command, "report.jsonl", cwd=tmp_path, first=first)
    words = f"this command needs {package}: got no such package (python -m pip install {package})"
    refused(done, words)


def test_script_runs_beside_a_folder_of_the_modules_name(folder):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["attn-conformance"].partition(":")
    (folder / "conformance").mkdir()
    (folder / "conformance/__init__.py").write_text("raise RuntimeError\n", "utf-8")
    script = folder / "bin/attn-conformance"  # as pip writes it
    script.parent.mkdir()
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(script), *CHECK, *ONE]
    options = {"env": environment, "capture_output": True, "text": True, "encoding": "utf-8"}
    conforms(subprocess.run(command, cwd=folder, check=False, **options), folder)


CORES: dict[str, tuple[str | None, int]] = {
    "no_container": (None, 6),
    "no_limit": ("max 100000", 6),
    "two_cores": ("200000 100000", 2),
    "half_a_core": ("50000 100000", 1),
    "more_than_there_are": ("900000 100000", 6),
}


@pytest.mark.parametrize("name", CORES)
def test_cores_are_those_allowed(tmp_path, monkeypatch, name):
    text, expected = CORES[name]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(run, "QUOTA", tmp_path / "cpu.max")
    if text:
        (tmp_path / "cpu.max").write_text(text + "\n", "utf-8")
    assert run.cores() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    assert run.cores() == 64  # macOS and Windows say no more


def test_report_may_be_the_null_device_or_a_pipe(folder):
    done = cli(*CHECK, *ONE, "--report", os.devnull, cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "1 test in " in done.stdout
    assert Path(os.devnull).is_char_device()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_report_may_be_standard_output(folder, tmp_path_factory):
    done = cli(*CHECK, *ONE, "--report", "/dev/stdout", cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"type":')]
    assert [line.split('"')[3] for line in lines] == ["header", "case", "result", "footer"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_report_may_be_standard_output_in_a_file(folder):
    with (folder / "out.txt").open("w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "conformance", *CHECK, *ONE, "--report", "/dev/stdout"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, stdout=out, check=False)
    lines = [x for x in (folder / "out.txt").read_text("utf-8").splitlines() if x[:8] == '{"type":']
    assert done.returncode == 0 and len(lines) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_report_may_be_a_link(folder):
    (folder / "elsewhere").mkdir()
    (folder / "link.jsonl").symlink_to(folder / "elsewhere/report.jsonl")
    done = cli(*CHECK, *ONE, "--report", "link.jsonl", cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert (folder / "link.jsonl").is_symlink()
    assert results(read(folder / "elsewhere/report.jsonl"))
    there = {path.name for path in folder.iterdir()} - {"__pycache__"}  # Python's own
    assert there == {"adapter.py", "elsewhere", "link.jsonl"}


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e12", "soon"])
def test_time_limit_that_is_none_is_refused(capsys, seconds):
    with pytest.raises(SystemExit):
        main(["run", "--timeout", seconds])
    said = capsys.readouterr().err.splitlines()[-1]
    assert "argument --timeout: " in said and seconds in said


@pytest.mark.parametrize("options", [["-p", "no:conformance-report"], ["--fixtures"]])
def test_run_that_reports_nothing_is_no_pass(folder, options):
    done = cli(*CHECK, *ONE, *options, cwd=folder)
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert done.stderr.endswith("no verdict: the run was cut off: got no result\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_report_that_finds_no_room_at_its_end_is_no_pass(folder):
    done = cli(*CHECK, *ONE, "--report", "/dev/full", cwd=folder)
    refused(done, "the report could not be written: got [Errno 28]", "/dev/full")


SMALL = """
import resource, sys
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sets no such limit")
@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n1"]], ids=["alone", "worker"])
def test_report_that_finds_no_room_has_no_verdict(folder, workers):
    only = ["--profile", "empty", *workers]
    done = cli(*CHECK, *only, cwd=folder, first=SMALL)
    assert done.returncode not in (0, pytest.ExitCode.TESTS_FAILED), done.stdout
    assert "the report could not be written: got [Errno 27] File too large" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("no verdict: the run was cut off: got ")


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000])
def test_report_that_is_nested_deeply_is_refused(tmp_path, capsys, nested):
    path = tmp_path / "deep.jsonl"
    path.write_text(f"{nested}\n", "utf-8")
    assert main(["summary", str(path)]) == 2
    assert capsys.readouterr().err.startswith("a report begins with a header and ends with a foo")


def test_known_differences_that_are_nested_deeply_are_refused(folder):
    (folder / "known.toml").write_text(f"{ENTRY}case = {'[' * 100_000}\n", "utf-8")
    done = cli(*CHECK, *ONE, "--known", "known.toml", cwd=folder)
    refused(done, "--known: known differences are written in TOML: got known.toml")


@pytest.mark.parametrize("what", ["list", "--help"])
def test_reader_that_has_gone_is_no_error(tmp_path, what):
    command = [sys.executable, "-m", "conformance", what]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    options = {"env": environment, "cwd": tmp_path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, **options) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)


def test_run_that_is_told_to_end_leaves_what_it_has(folder):
    slow = ADAPTER.replace(
        "        scores", "        __import__('time').sleep(0.5)\n        scores", 1
    )
    (folder / "adapter.py").write_text(slow, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "conformance", *CHECK, "--profile", "empty"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE)
    draft = folder / f".conformance/report.jsonl.{process.pid}"
    while not draft.exists() or draft.read_text("utf-8").count("result") < 2:
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and b"no verdict: the run was cut off" in said
    assert (folder / ".conformance/report.jsonl").read_text("utf-8").count('"type": "result"') >= 2
