"""The README, word for word: its examples run, its commands exist, its tables are whole."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_sessions import sessions

from tools import picture

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BACKENDS = {"NumPy": "attn_numpy", "PyTorch": "attn_torch", "JAX": "attn_jax"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def example(framework: str) -> str:
    (found,) = (block for block in blocks("python") if block.startswith(f"# {framework}\n"))
    return found


@pytest.mark.parametrize("framework", BACKENDS)
def test_example_prints_what_is_shown(framework, capsys):
    names = {}
    exec(example(framework), names)
    shapes = [tuple(names[name].shape) for name in ("output", "out", "weights")]
    assert shapes == [(2, 4, 5, 8), (2, 5, 32), (2, 5, 5)]
    assert capsys.readouterr().out == blocks("text")[0]


@pytest.mark.parametrize("framework", BACKENDS)
def test_example_is_about_ten_lines(framework):
    lines = [line for line in example(framework).splitlines() if line and line[0] != "#"]
    assert len(lines) <= 11


def test_example_says_the_same_three_times():
    texts = [
        [
            line
            for line in example(name).splitlines()
            if line.startswith(("mask", "output", "print"))
        ]
        for name in BACKENDS
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == 4


def test_install_and_first_call_stand_within_thirty_lines():
    head = "\n".join(README.splitlines()[:30])
    assert -1 < head.find("pip install") < head.find("attention(query, key, value")


def test_picture_shows_the_masks_of_today():
    assert picture.PICTURE.read_text("utf-8") == picture.picture(), "run python tools/picture.py"


def test_commands_name_sessions_that_exist():
    named = set(re.findall(r"nox -s ([\w-]+)", README))
    wanted = {"conformance", "tests", "bench", "translate", "mutants", "mutate", "atlas"}
    assert named == wanted | {"site", "site-browser"}
    assert named <= set(sessions())


def test_the_check_runs_the_command_of_the_readme():
    command = "python -m nox -s tests"
    assert command in README
    assert command in (ROOT / ".ci/run").read_text("utf-8")


def listed(heading: str) -> list[str]:
    """Return what the first column of the table under a heading names."""
    (table,) = re.findall(rf"^\| {heading} \|.*?(?=\n\n)", README, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return re.findall(r"`([^`]+)`", " ".join(rows))


def test_every_file_of_a_backend_is_listed_once():
    tables = README.split("## Where things are")[1].split("The rest of the project")[0]
    files = re.findall(r"^\| (.*?) \|", tables, re.MULTILINE)
    names = re.findall(r"`([\w/]+\.py)`", " ".join(files))
    folders = [ROOT / folder for folder in BACKENDS.values()]
    paths = [(path, folder) for folder in folders for path in folder.rglob("*.py")]
    there = {path.relative_to(folder).as_posix() for path, folder in paths}
    assert sorted(names) == sorted(name for name in there if not name.endswith("__init__.py"))


def test_every_room_of_the_suite_is_listed_once():
    rooms = [name for name in listed("folder") if name.startswith("conformance/")]
    there = {f"conformance/{p.parent.name}/" for p in (ROOT / "conformance").glob("*/__init__.py")}
    assert sorted(rooms) == sorted({"conformance/", *there} - {"conformance/documents/"})


def test_every_listed_folder_is_there():
    assert [name for name in listed("folder") if not (ROOT / name).is_dir()] == []


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing


def test_decoding_example_gives_the_shapes_it_says():
    names = {}
    exec(example("Decoding"), names)
    assert tuple(names["out"].shape) == (2, 1, 32)
    assert names["cache"].lengths.tolist() == [6, 4]


def test_weights_example_gives_one_model_three_times(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example("Weights"), names)
    theirs = names["theirs"].state_dict()["decoder.layers.1.linear2.weight"].numpy()
    in_torch, in_jax = names["same"]
    found = (
        names["model"].decoder.layers[1].linear2.weight,
        in_torch.decoder.layers[1].linear2.weight.detach().numpy(),
        np.asarray(in_jax.decoder.layers[1].linear2.kernel[...]).T,
    )
    assert all(np.array_equal(weight, theirs) for weight in found)
