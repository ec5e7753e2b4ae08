"""docs/kernels.md: its files are written, its commands run, and its kernels answer the vectors."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest
from test_command_line import cli
from test_plug_in_page import BLOCK, shown

from conformance import subjects
from conformance.oracle.tolerance import Differs
from conformance.reports.report import read, results
from conformance.subjects.adapter import Plugged
from conformance.subjects.protocol import NotOffered
from conformance.vectors.check_subject import check, checks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/kernels.md").read_text("utf-8")
BLOCKS = [(block["kind"], block["text"]) for block in BLOCK.finditer(PAGE)]
NAMED = {m[1]: text for _, text in BLOCKS if (m := re.match(r"(?:#|//) (\S+\.\w+)\n", text))}
COMMANDS = [text.splitlines() for kind, text in BLOCKS if kind == "sh"]
SHOWN = [text for kind, text in BLOCKS if kind == "text"]
COMPILER = shutil.which("cc") or shutil.which("gcc")
COMPILE, *SMOKE = (line for lines in COMMANDS for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder with the page's files, from which this process may import."""
    folder = tmp_path_factory.mktemp("kernels")
    for name, text in NAMED.items():
        (folder / name).write_text(text, "utf-8")
    if COMPILER:
        subprocess.run([COMPILER, *shlex.split(COMPILE)[1:]], cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
        for name in [name for name in sys.modules if (folder / f"{name}.py").exists()]:
            del sys.modules[name]


def plugged(folder: Path, name: str) -> Plugged:
    if "ctypes.CDLL" in (folder / f"{name}.py").read_text("utf-8") and not COMPILER:
        pytest.skip("neither cc nor gcc is on the PATH to compile the kernel in C")
    invalidate_caches()
    (subject,) = subjects.plug(f"{name}:Subject", "cpu")
    return subject


KERNELS = ["c_kernel", "block_kernel", "pallas_kernel"]
PARTLY_HIDDEN = {"CLEAN-4", "CLEAN-6"}  # NaN in a value that some rows may read: 0 * NaN is NaN
DIFFERING = dict(zip(KERNELS, [set(), PARTLY_HIDDEN | {"HALF-4"}, PARTLY_HIDDEN], strict=True))


def test_smoke_of_the_page_is_a_pass(folder):
    """The page's commands differ in the subject alone, so one run does for all."""
    words = [shlex.split(line) for line in SMOKE[:3]]
    assert [line.pop(5).partition(":")[0] for line in words] == KERNELS
    assert words[0] == words[1] == words[2] and words[0].pop(4) == "--subject"
    names = KERNELS if COMPILER else KERNELS[1:]
    asked = [word for name in names for word in ("--subject", f"{name}:Subject")]
    done = cli(*words[0][3:], *asked, cwd=folder)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert [shown(text, done.stdout) for text in SHOWN[:3]] == [[]] * 3
    outcomes = {(r["subject"], r["outcome"]) for r in _report(folder)}
    wanted = {name.replace("_", "-") for name in names}
    assert {name for name, outcome in outcomes if outcome == "conforms"} == wanted
    if not COMPILER:
        pytest.skip("neither cc nor gcc is on the PATH to compile the kernel in C")


def _report(folder: Path) -> list[dict]:
    return results(read(folder / ".conformance/report.jsonl"))


def test_wrong_kernel_of_the_page_is_caught_in_the_words_that_it_shows(folder):
    done = cli(*shlex.split(SMOKE[3])[3:], cwd=folder)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert shown(SHOWN[3], done.stdout) == [], done.stdout[-4000:]


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_answers_the_frozen_vectors_but_those_that_the_page_names(folder, name):
    subject, clauses, differ = plugged(folder, name), set(), {}
    for entry, dtype in checks():
        if dtype in subject.dtypes:
            try:
                check(subject, entry["id"], dtype)
                clauses.add(entry["clause"])
            except NotOffered:
                continue
            except Differs as error:
                differ[entry["clause"]] = str(error)
    assert {"ATT-1", "ATT-5", "EMPTY-1", "EMPTY-4", "CLEAN-2", "CAUSE-1"} <= clauses
    assert set(differ) == DIFFERING[name], differ
    assert all(clause in PAGE for clause in differ)
    assert ("GRAD-1" in clauses) == ("gradients" in subject.capabilities)


MISTAKES = [
    ("c_kernel", "D_v && any;", "D_v;", "EMPTY-1.zero", "expected exactly 0, got nan"),
    ("c_kernel", "h / (H / H_kv)", "h % H_kv", "ATT-5.grouped", "expected"),
    ("c_kernel", "!mask[row", "mask[row", "ATT-1.causal", "expected"),
    ("block_kernel", "(any_key, total, 1)", "(any_key, total, 0)", "EMPTY-1.zero", "got nan"),
    ("block_kernel", "sums * shrink", "sums", "ATT-1.causal", "expected"),
    ("block_kernel", "mask[b, h, rows]", "mask[b, 0, rows]", "ATT-8.cells", "expected"),
    ("pallas_kernel", "sum(-1, keepdims=True), 1)", "sum(-1, keepdims=True), 0)", "EMPTY-1.zero",
     "got nan"),
    ("pallas_kernel", "h // heads", "h % H_kv", "ATT-5.grouped", "expected"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "right", "wrong", "vector", "words"), MISTAKES)
def test_kernel_with_a_mistake_is_caught(folder, name, right, wrong, vector, words):
    own = f"mistake_{MISTAKES.index((name, right, wrong, vector, words))}"
    text = NAMED[f"{name}.py"].replace("libflash", f"lib{own}")
    if name == "c_kernel":
        assert NAMED["flash.c"].count(right) == 1
        (folder / f"{own}.c").write_text(NAMED["flash.c"].replace(right, wrong), "utf-8")
        if COMPILER:
            line = COMPILE.replace("libflash", f"lib{own}").replace("flash.c", f"{own}.c")
            subprocess.run([COMPILER, *shlex.split(line)[1:]], cwd=folder, check=True)
    else:
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    (folder / f"{own}.py").write_text(text, "utf-8")
    subject = plugged(folder, own)
    with pytest.raises(Differs, match=rf"^vector {vector}: output at .*{words}"):
        check(subject, vector, "float32")


def test_first_adapter_of_the_page_is_given_tensors_and_has_its_gradients_from_autograd(folder):
    subject = plugged(folder, "my_adapter")
    assert not hasattr(subject.adapter, "gradients")
    for vector in ("ATT-1.causal", "GRAD-1.causal"):
        check(subject, vector, "float32")
