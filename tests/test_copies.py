"""The copies: files that all backends share, and the command that spreads an edit."""

import subprocess

import pytest

from tools.copies import BACKENDS, COMMAND, FILES, different, main


@pytest.fixture
def root(tmp_path):
    """A repository with three equal folders."""
    for backend in BACKENDS:
        (tmp_path / backend).mkdir()
        for file in FILES:
            (tmp_path / backend / file).write_bytes(b"1\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "files"]):
        who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)
    return tmp_path


def edit(root, *backends, file="draw.py"):
    for i, backend in enumerate(backends):
        (root / backend / file).write_bytes(b"edited %d\n" % i)


def test_equal_files_are_nothing_to_complain_about(root):
    assert main([], root) is None
    assert main(["--fix"], root) is None


def test_a_difference_names_the_file_and_the_command(root):
    edit(root, "attn_jax")
    assert main([], root) == f"not the same in the three backends, run {COMMAND}: draw.py"


def test_a_missing_file_is_a_difference(root):
    (root / "attn_jax" / "layouts.py").unlink()
    assert different(root) == ["layouts.py"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_fix_spreads_the_one_that_was_edited(root, backend, capsys):
    edit(root, backend)
    assert main(["--fix"], root) is None
    assert capsys.readouterr().out == f"draw.py: copied from {backend}\n"
    assert {(root / b / "draw.py").read_bytes() for b in BACKENDS} == {b"edited 0\n"}


def test_fix_refuses_to_choose_and_changes_nothing(root):
    edit(root, "attn_numpy", file="checks.py")
    edit(root, "attn_numpy", "attn_jax")
    rule = "draw.py must be edited in one backend, or choose with --from"
    assert main(["--fix"], root) == f"{rule}: got attn_jax, attn_numpy"
    assert different(root) == ["checks.py", "draw.py"]
    assert main(["--fix", "--from", "attn_jax"], root) is None
    assert (root / "attn_numpy" / "draw.py").read_bytes() == b"edited 1\n"


def test_fix_refuses_where_the_last_commit_differs_already(root):
    edit(root, "attn_torch")
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, "commit", "-qm", "differ"], cwd=root, check=True)
    assert main(["--fix"], root).endswith("choose with --from: got none")


def test_fix_refuses_a_source_that_is_not_there(root):
    (root / "attn_jax" / "draw.py").unlink()
    wrong = main(["--fix", "--from", "attn_jax"], root)
    assert wrong == "attn_jax must have what is to be copied: got no draw.py"
    assert (root / "attn_numpy" / "draw.py").is_file()
