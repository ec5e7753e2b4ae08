"""The command line: what it prints, what it writes, and that nothing untested counts as a pass."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from conformance.__main__ import main
from conformance.conftest import select
from conformance.contract import clauses
from conformance.reports.report import OUTCOMES, read, results

ROOT = Path(__file__).parents[1]
EMPTY = ["run", "--backend", "numpy", "--profile", "empty"]


def cli(
    *arguments, root: Path = ROOT, cwd: Path = ROOT, first: str = "", **options
) -> subprocess.CompletedProcess:
    """Run `python -m conformance` from the packages in `root`.

    The Python in `first` runs before anything else in each process that the command starts.
    """
    with TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(first, "utf-8")
        path = os.pathsep.join([folder, str(root), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path} | options.pop("env", {})
        return subprocess.run(
            [sys.executable, "-m", "conformance", *map(str, arguments)],
            env=environment, cwd=cwd, capture_output=True, text=True, encoding="utf-8",
            errors="backslashreplace", check=False, **options,
        )  # fmt: skip


def small_suite(folder: Path) -> Path:
    """Copy a suite of two files there, for runs of all of it; return what `cli` calls its root."""
    kept = {"test_empty.py", "test_hygiene.py"}

    def ignored(_, names):
        return [name for name in names if name.startswith("test_") and name not in kept]

    shutil.copytree(ROOT / "conformance", folder / "small/conformance", ignore=ignored)
    return folder / "small"


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """The command failed and said why, in one line and in its own words."""
    assert done.returncode != 0, done.stdout
    for text in (done.stdout, done.stderr):
        assert "Traceback" not in text, text[-2000:]
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def empty_run(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """Run one profile on one backend, outside the repository."""
    folder = tmp_path_factory.mktemp("run")
    return cli(*EMPTY, "--report", "new/report.jsonl", cwd=folder), folder / "new/report.jsonl"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_list_names_every_clause(capsys):
    assert main(["list"]) == 0
    listed = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert listed == [[c.profile, c.id, c.level, c.sentence] for c in clauses().values()]


def test_run_passes_and_ends_with_its_verdict(empty_run):
    done, path = empty_run
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    *_, fine, total, versions, where, verdict = done.stdout.splitlines()
    one_line = r"numpy cpu: 1 profile conforms, worst error 0\.\d\d of the tolerance"
    assert re.fullmatch(one_line, fine), done.stdout
    assert re.fullmatch(r"\d+ tests in \S+ s: \d+ conform, \d+ skipped", total)
    assert versions == f"Python {platform.python_version()}, numpy {np.__version__}"
    assert where == f"report: {path.relative_to(path.parents[1])}"
    assert verdict == "conforms: 8 clauses, 1 clause not offered"
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert all(line == line.rstrip() and len(line) <= 80 for line in done.stdout.splitlines())


def test_report_is_a_header_cases_results_and_a_footer(empty_run):
    header, *inner, footer = lines_of(empty_run[1])
    cases = {line["case"]: line for line in inner if line["type"] == "case"}
    results = [line for line in inner if line["type"] == "result"]
    assert len(cases) + len(results) == len(inner)
    assert [line["case"] for line in results] == list(cases)
    (subject,) = header["subjects"]
    assert (subject["subject"], subject["device"]) == ("numpy", "cpu")
    assert subject["versions"] == {"numpy": np.__version__}
    assert subject["masks"] == "structure" and "attention" in subject["capabilities"]
    assert (header["type"], header["python"]) == ("header", platform.python_version())
    assert header["precision"]
    assert header["arguments"][: len(EMPTY)] == EMPTY
    assert (footer["type"], footer["exit"]) == ("footer", 0)
    assert footer["counts"] == Counter(line["outcome"] for line in results)
    own = [clause.id for clause in clauses().values() if clause.profile == "empty"]
    assert {line["clause"] for line in results} == set(own)
    halves = {line["dtype"] for name, line in cases.items() if "16_bits" in name}
    assert halves == {"float16", "bfloat16"}


def test_result_says_what_was_tested_and_how_it_went(empty_run):
    results = [line for line in lines_of(empty_run[1]) if line["type"] == "result"]
    assert len({line["test"] for line in results}) == len(results)
    for line in results:
        assert line["outcome"] in OUTCOMES
        assert f"[numpy-cpu-{line['clause']}" in line["test"]
        assert line["case"] == line["test"].replace("[numpy-cpu-", "[")
        assert (line["subject"], line["device"]) == ("numpy", "cpu")
        if line["outcome"] == "conforms":
            assert 0 <= line["used"] <= 1, line
        else:
            assert line["outcome"] == "not offered"
            assert line["message"].endswith("numpy does not offer gradients"), line


def report(capsys, path: Path) -> subprocess.CompletedProcess:
    """Run `summary` in this process; it must not raise an exception."""
    status = main(["summary", str(path)])
    return subprocess.CompletedProcess(["summary", path], status, *capsys.readouterr())


def test_summary_prints_the_same_again(empty_run, capsys):
    done = report(capsys, empty_run[1])
    assert (done.returncode, done.stderr) == (0, "")
    *printed, _, verdict = empty_run[0].stdout.splitlines()
    assert done.stdout.splitlines() == [*printed[-3:], verdict]


CUTS = {
    "without_footer": lambda text: text.rsplit("\n", 2)[0] + "\n",
    "in_the_middle_of_a_line": lambda text: text[: len(text) // 2].rstrip("}\n"),
    "without_header": lambda text: text.split("\n", 1)[1],
    "empty": lambda text: "",
    "no_json": lambda text: "a report\n",
    "other_json": lambda text: '{"counts": 3}\n[]\n',
}


@pytest.mark.parametrize("how", CUTS)
def test_report_that_was_cut_off_is_refused(empty_run, tmp_path, capsys, how):
    path = tmp_path / "cut.jsonl"
    path.write_text(CUTS[how](empty_run[1].read_text("utf-8")), "utf-8")
    refused(report(capsys, path), "a report", str(path))


def test_report_that_does_not_exist_is_refused(tmp_path, capsys):
    refused(report(capsys, tmp_path / "none.jsonl"), str(tmp_path / "none.jsonl"))


NUMPY = ["run", "--backend", "numpy"]
WRONG = {
    "clause": (["--clause", "EMTPY-2"], "--clause must be one of EMPTY-2,", "got EMTPY-2"),
    "profile": (["--profile", "nope"], "--profile must be one of masks,", "got nope"),
    "backend": (["--backend", "nope"], "--backend must be one of numpy, torch, jax: got nope"),
    "device": (["--device", "cuda"], "--device must be", "got cuda, numpy has cpu"),
    "case": (["-k", "no_such_case"], "no verdict: no case matches"),
    "both": (
        ["--profile", "empty", "--clause", "ATT-1"],
        "matches all that was asked for together",
    ),
    "path": (["no/such/test.py"], "not found: no/such/test.py"),
}


@pytest.mark.parametrize("name", WRONG)
def test_run_refuses_what_does_not_exist(tmp_path, name):
    given, *words = WRONG[name]
    refused(cli(*NUMPY, *given, "--report", tmp_path / "report.jsonl", cwd=tmp_path), *words)


def test_run_refuses_a_report_that_cannot_be_written(tmp_path):
    refused(cli(*EMPTY, "--report", tmp_path), "--report", str(tmp_path))


def test_backend_that_is_not_installed_is_an_error(tmp_path):
    without = "import sys; sys.modules['torch'] = None"
    done = cli("run", "--backend", "torch", "--report", tmp_path / "report.jsonl", first=without)
    refused(done, "a backend must be installed to be tested", "torch lacks torch")


def test_backend_that_is_not_installed_is_an_error_beside_another(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(pytest.UsageError, match=r"got torch lacks torch$"):
        select(["numpy", "torch"], "auto")


def test_backend_that_cannot_be_imported_is_an_error(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: no such file')\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    done = cli("run", "--backend", "torch", "--report", tmp_path / "report.jsonl", first=path)
    refused(done, "torch", "libtorch.so: no such file")


def test_every_importable_backend_runs_where_none_is_named(tmp_path):
    without = "import sys; sys.modules |= dict.fromkeys(['torch', 'jax', 'flax'])"
    report = tmp_path / "report.jsonl"
    done = cli("run", "--clause", "MASK-3", "--report", report, first=without)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [s["subject"] for s in lines_of(report)[0]["subjects"]] == ["numpy"]


@pytest.fixture
def copy(tmp_path) -> Path:
    """Return a copy of the suite and of one backend, to break."""
    for name in ("conformance", "attn_numpy"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{path.name} no longer says {old}"
    path.write_text(text.replace(old, new), "utf-8")


SCALE = "scale_or_default(scale, head_dim)"
BREAKS = {"differs": SCALE.replace(")", " + 1)"), "error": SCALE.replace(" head", " -head")}


@pytest.mark.parametrize("outcome", BREAKS)
def test_failure_names_clause_subject_case_and_the_command_that_repeats_it(copy, outcome):
    replace(copy / "attn_numpy/call.py", SCALE, BREAKS[outcome])
    only = ["--clause", "ATT-1", "-k", "test_output_is_the_formula and plain"]
    done = cli(*NUMPY, *only, root=copy, cwd=copy)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    clause, case = clauses()["ATT-1"], "test_output_is_the_formula[numpy-cpu-ATT-1-plain]"
    assert f"ATT-1 (MUST): {clause.sentence}\n" in done.stdout
    shared = case.replace("[numpy-cpu-", "[")
    assert f"subject numpy, device cpu, dtype float32, case {shared}\n" in done.stdout
    *lines, footer = lines_of(copy / ".conformance/report.jsonl")
    results = [line for line in lines if line["type"] == "result"]
    (result,) = [line for line in results if line["test"] == case]
    assert (result["outcome"], footer["counts"][outcome]) == (outcome, len(results))
    assert footer["exit"] == 1
    assert result["message"].removeprefix("ATT-1: ") in done.stdout
    if outcome == "differs":
        assert re.match(r"ATT-1: output at \(.*\): expected .*, got .*, error", result["message"])
    command = re.search(r"run just this: python -m conformance (.*)", done.stdout)[1]
    again = cli(*shlex.split(command), root=copy, cwd=copy)
    assert again.returncode == pytest.ExitCode.TESTS_FAILED
    assert result["message"].removeprefix("ATT-1: ") in again.stdout


RAISES = """
class Subject:
    name = {name!r}
    mask_polarity = "attend"

    def attention(self, query, key, value, *, mask=None):
        raise {error}
"""


OLD_NAME = RAISES.replace("mask_polarity", "masks").format(name="mine", error="OSError")


@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n1"]], ids=["alone", "worker"])
def test_a_run_prints_what_is_deprecated_in_one_line(tmp_path, workers):
    done = run_adapter(tmp_path, OLD_NAME, "--clause", "EMPTY-1", *workers)
    words = (
        "DeprecationWarning: `masks` is now called `mask_polarity`: write mask_polarity = 'attend'"
    )
    assert done.stderr == f"{words} in Subject\n", done.stdout + done.stderr


EMPTY_ONE = ["--clause", "EMPTY-1"]


def run_adapter(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess:
    """Run the suite on the `Subject` of this text."""
    (folder / "adapter.py").write_text(text, "utf-8")
    first = f"import sys; sys.path.insert(0, {str(folder)!r})"
    return cli("run", "--subject", "adapter:Subject", *options, cwd=folder, first=first)


def run_raising(
    folder: Path, error: str, *options: str, name: str = "mine"
) -> subprocess.CompletedProcess:
    """Run a clause on a subject that raises whatever it is asked."""
    return run_adapter(folder, RAISES.format(error=error, name=name), *EMPTY_ONE, *options)


NO_TEXT = {"alone": [], "workers": ["-p", "xdist", "-n1"], "argument": ["--deselect", "\udcff"]}


@pytest.mark.parametrize("options", NO_TEXT.values(), ids=NO_TEXT)
def test_report_can_be_read_where_something_said_is_no_text(tmp_path, options):
    done = run_raising(tmp_path, r"OSError('no file \udcff')", *options)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    found = results(read(tmp_path / ".conformance/report.jsonl"))
    messages = {line["message"] for line in found if line["outcome"] == "error"}
    assert messages == {r"OSError: no file \udcff"}


SPELT = {
    "outside_ascii": ("注意", "OSError", []),
    "backslash": ("back\\slash", "OSError", []),
    "crash": ("注意", "__import__('os')._exit(1)", ["-p", "xdist", "-n1"]),
}


@pytest.mark.parametrize("how", SPELT)
def test_case_has_no_subject_in_its_name_however_that_is_spelt(tmp_path, how):
    name, error, options = SPELT[how]
    done = run_raising(tmp_path, error, *options, name=name)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    found = results(read(tmp_path / ".conformance/report.jsonl"))
    assert {line["subject"] for line in found} == {name}
    assert {line["case"].split("[", 1)[1][:7] for line in found} == {"EMPTY-1"}
    assert "error" in {line["outcome"] for line in found}


DIES = """
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

class Subject:
    mask_polarity = "attend"

    def attention(self, query, key, value, *, mask=None):
        if not Path("died").exists():
            Path("died").touch()
            os._exit(1)
        return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
"""


def test_crash_is_a_cases_one_result_though_a_worker_runs_it_again(tmp_path):
    done = run_adapter(tmp_path, DIES, *EMPTY_ONE, "-p", "xdist", "-n1", "--dist=loadfile")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    found = results(read(tmp_path / ".conformance/report.jsonl"))
    assert max(Counter(line["case"] for line in found).values()) == 1
    assert "crashed" in next(r["message"] for r in found if r["outcome"] == "error")


CONSTANT = """
import numpy as np

class Subject:
    mask_polarity = "attend"
    capabilities = {"attention", "any_shape"}

    def attention(self, query, key, value, *, mask=None):
        if query.shape[2] == 3:
            raise ZeroDivisionError
        return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)
"""


def test_failure_keeps_its_order_whatever_else_is_said(tmp_path):
    """A property has a text of its own, and an example of Hypothesis stands behind the command."""
    only = ["--clause", "ATT-13", "--clause", "CAUSE-4", "-k", "any_call or later"]
    done = run_adapter(tmp_path, CONSTANT, *only)
    numbers = r"\w+ at \(.*\): expected \S+, got \S+, error \S+ of \S+ allowed \(.*\)"
    program = r"run it alone:\n\nimport numpy as np\n"
    assert re.search(rf"\n{numbers}\nrun just this: .*\n{program}", done.stdout), done.stdout
    told = [r["message"] for r in results(read(tmp_path / ".conformance/report.jsonl"))]
    assert any(message.startswith("the tokens were not changed") for message in told), told
    assert not any("assert" in message for message in told), told


def test_exception_that_does_not_come_is_another_answer(tmp_path):
    only = ["--mutant", "lengths-clipped", "--clause", "MASK-6", "-k", "out_of_range"]
    done = cli("run", *only, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    found = results(read(tmp_path / ".conformance/report.jsonl"))
    said = {(line["outcome"], line["message"]) for line in found}
    assert said == {("differs", "DID NOT RAISE ValueError")}
    assert "\nDID NOT RAISE ValueError\n" in done.stdout


@pytest.mark.parametrize("option", ["--co", "--collect-only"])
def test_run_that_only_collects_has_no_verdict_and_leaves_the_report(empty_run, option):
    path = empty_run[1]
    before = path.read_bytes()
    done = cli(*EMPTY, option, "--report", "new/report.jsonl", cwd=path.parents[1])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "tests collected" in done.stdout.splitlines()[-1]
    assert path.read_bytes() == before


CUT_OFF = {
    "first_failure": ("OSError", ["-x"], pytest.ExitCode.TESTS_FAILED),
    "interrupted": ("KeyboardInterrupt", [], pytest.ExitCode.INTERRUPTED),
    "interrupted_with_workers": (
        "KeyboardInterrupt", ["-p", "xdist", "-n1"], pytest.ExitCode.INTERRUPTED
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", CUT_OFF)
def test_run_that_was_cut_off_says_so_with_the_status_of_pytest(tmp_path, how):
    error, options, status = CUT_OFF[how]
    done = run_raising(tmp_path, error, *options)
    assert done.returncode == status, done.stdout
    got = ".conformance/report.jsonl, without a footer"
    words = f"no verdict: the run was cut off: got {got}"
    assert done.stderr.strip().splitlines()[-1] == words
