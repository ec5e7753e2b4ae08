"""The command `convert`: what goes where, the proof, and that a refusal writes nothing."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from conformance.cases.multihead import MultiHeadCase
from conformance.cases.weight_layouts import to_layout
from conformance.subjects import load
from conformance.vectors import tensors

ROOT = Path(__file__).parents[1]
BACKENDS = ("numpy", "torch", "jax")
OUT_BIAS = MultiHeadCase({"embed_dim": 14, "num_heads": 2, "qkv_bias": False})
GROUPED = MultiHeadCase(
    {"embed_dim": 12, "num_heads": 6, "num_kv_heads": 2, "head_dim": 5, "kdim": 5, "vdim": 3},
    S=5, kdim=5, vdim=3,
)  # fmt: skip
PLAIN = MultiHeadCase()
# A chain of layouts from one end to the other, of attentions that each of its layouts can have.
CHAINS = {
    "plain": (PLAIN, ["torch", "keras", "gpt2", "bert", "timm", "equinox"]),
    "out_bias": (OUT_BIAS, ["timm", "equinox", "timm"]),
    "grouped": (GROUPED, ["nnx", "keras", "rosetta", "nnx"]),
}


def convert(backend: str, *words, heads: int | None = None) -> int:
    words += ("--heads", heads) if heads else ()
    return import_module(f"attn_{backend}.convert").main(["convert", *map(str, words)])


def written(path: Path, layout: str, call: MultiHeadCase, dtype: str = "float32") -> Path:
    tensors.write(path, to_layout(layout, call.parameters(dtype), call.config["num_heads"]))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_layouts_ends_in_a_file_that_load_builds(backend, name, tmp_path, capsys):
    (call, layouts), last = CHAINS[name], tmp_path / "last.safetensors"
    path = written(tmp_path / "0.safetensors", layouts[0], call)
    for i, (layout, to) in enumerate(zip(layouts, [*layouts[1:], "rosetta"], strict=True)):
        target = last if to == "rosetta" and layout == layouts[-1] else tmp_path / f"{i + 1}"
        by_head = layout in ("nnx", "keras") or (layout == "rosetta" and i)
        heads = None if by_head else call.config["num_heads"]
        assert convert(backend, path, target, "--to", to, heads=heads) == 0, capsys.readouterr()
        said = capsys.readouterr().out
        assert f"the same output (2, 5, {call.config['embed_dim']}), bit for bit" in said
        path = target
    got, _ = load(backend).load(last)
    wanted = call.parameters("float32")
    assert sorted(got) == sorted(wanted)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_table_says_what_went_where_and_what_was_left_out(backend, tmp_path, capsys):
    weights = {
        f"h.3.attn.{n}": x for n, x in to_layout("gpt2", PLAIN.parameters("bfloat16"), 2).items()
    }
    source, target = tmp_path / "source", tmp_path / "target"
    tensors.write(source, weights | {"h.3.attn.bias": np.ones((1, 1, 9, 9), np.float32)})
    assert convert(backend, source, target, "--to", "keras", "--prefix", "h.3.attn", heads=2) == 0
    said = capsys.readouterr().out.splitlines()
    rows = {
        tuple(line.split("->")[1].split(" (")[0].split()): line for line in said if "->" in line
    }
    assert rows[("key.kernel",)].split()[0] == "c_attn.weight"
    assert rows[("attention_output.bias",)].split()[0] == "c_proj.bias"
    assert len(rows) == 9 and "bias is left out" in said
    assert "MultiHeadAttention: 2 heads of 7, bfloat16" in said


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_model_goes_to_torchs_layout(backend, tmp_path, capsys):
    import torch

    subject = load("torch")
    model = subject.module.Transformer(14, 2, 1, 1, 11, device="cpu")
    subject.module.save(model, tmp_path / "model")
    assert convert(backend, tmp_path / "model", tmp_path / "target", "--to", "torch") == 0
    theirs = torch.nn.Transformer(14, 2, 1, 1, 11, batch_first=True).eval()
    arrays, _ = tensors.read(tmp_path / "target")
    theirs.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    src, tgt = torch.randn(2, 3, 5, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        off = (theirs(src, tgt) - model.eval()(src, tgt)).abs().max().item()
    assert off < 1e-5, "torch.nn.Transformer gives another output by the file"


REFUSED = {
    "no_heads": ("torch", PLAIN, ["--to", "nnx"], "heads must be told where the arrays do not"),
    "wrong_heads": ("bert", PLAIN, ["--to", "nnx", "--heads", "3"], "heads must divide the rows"),
    "other_heads": ("nnx", PLAIN, ["--to", "bert", "--heads", "7"], "got 7 for 2"),
    "no_such_layout": ("bert", PLAIN, ["--to", "nnx", "--from", "timm", "--heads", "2"],
                       "those of an attention in layout 'timm': got output.dense.bias"),
    "prefix": ("bert", PLAIN, ["--to", "nnx", "--prefix", "h"], "prefix must begin some"),
    "groups": ("nnx", GROUPED, ["--to", "torch"], "layout 'torch' has as many key heads"),
    "unturned": ("bert", PLAIN, ["--to", "llama", "--heads", "2"], "turns heads by position"),
    "turned": ("llama", PLAIN, ["--to", "nnx", "--heads", "2"], "must say how heads are turned"),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_writes_nothing(backend, name, tmp_path, capsys):
    layout, call, words, text = REFUSED[name]
    source, target = written(tmp_path / "source", layout, call), tmp_path / "target"
    target.write_bytes(b"kept")
    assert convert(backend, source, target, *words) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("nothing was written: ") and text in said.err
    assert target.read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("source", "target must be another file than source: got "),
        ("folder/../source", "target must be another file than source: got "),
        ("nowhere/target", "target must be a file, in a folder that is there: got "),
        ("folder", "target must be a file, in a folder that is there: got "),
    ],
)
def test_a_target_that_cannot_be_is_named(backend, target, text, tmp_path, capsys):
    source = written(tmp_path / "source", "bert", PLAIN)
    (tmp_path / "folder").mkdir()
    before = source.read_bytes()
    assert convert(backend, source, f"{tmp_path}/{target}", "--to", "nnx", heads=2) == 1
    said = capsys.readouterr().err
    assert said == f"nothing was written: {text}{tmp_path}/{target}\n"
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "source"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rows", "dtype", "text"),
    [
        (0, "float32", "heads must divide the rows of each projection: got 2 for {'q': 0"),
        (14, "int64", "must be float16, bfloat16, float32 or float64: got int64"),
    ],
)
def test_arrays_that_are_no_weights_are_refused(backend, rows, dtype, text, tmp_path, capsys):
    parts = {name: np.ones((rows, 14), dtype) for name in ("query", "key", "value")}
    weights = {f"self.{name}.weight": array for name, array in parts.items()}
    weights["output.dense.weight"] = np.ones((14, rows), dtype)
    tensors.write(tmp_path / "source", weights)
    assert convert(backend, tmp_path / "source", tmp_path / "t", "--to", "nnx", heads=2) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["query", "out"])
def test_outputs_that_differ_are_no_proof(backend, name, tmp_path, capsys, monkeypatch):
    layouts = import_module(f"attn_{backend}.layouts")
    write = layouts.WRITERS["nnx"]

    def wrong(weights, *model):
        done = write(weights, *model)
        return done | {f"{name}.kernel": done[f"{name}.kernel"] * 1.25}

    monkeypatch.setitem(layouts.WRITERS, "nnx", wrong)
    source = written(tmp_path / "source", "bert", PLAIN)
    assert convert(backend, source, tmp_path / "target", "--to", "nnx", heads=2) == 1
    assert "both files must give the same output: got" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_that_are_not_finite_are_no_proof(backend, tmp_path, capsys):
    weights = to_layout("bert", PLAIN.parameters("float32"), 2)
    weights["self.value.bias"][3] = np.nan
    tensors.write(tmp_path / "source", weights)
    assert convert(backend, tmp_path / "source", tmp_path / "t", "--to", "nnx", heads=2) == 1
    assert "must be finite to be compared" in capsys.readouterr().err


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("broken", [None, (3,), (14, 3, 2)])
def test_a_file_that_lacks_what_its_layout_has_is_refused(backend, broken, tmp_path, capsys):
    weights = to_layout("keras", PLAIN.parameters("float32"), 2)
    key = weights.pop("key.kernel")
    weights |= {} if broken is None else {"key.kernel": np.resize(key, broken)}
    tensors.write(tmp_path / "source", weights)
    assert convert(backend, tmp_path / "source", tmp_path / "target", "--to", "bert") == 1
    assert "nothing was written: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_file_of_saves_says_itself_what_it_holds(tmp_path, capsys):
    attn = load("numpy").module.MultiHeadAttention(14, 2)
    load("numpy").module.save(attn, tmp_path / "source")
    for words in (["--prefix", "a"], ["--from", "torch"]):
        assert convert("numpy", tmp_path / "source", tmp_path / "t", "--to", "nnx", *words) == 1
        assert "nothing was written" in capsys.readouterr().err


def test_the_command_runs_from_any_folder(tmp_path):
    written(tmp_path / "source", "torch", PLAIN)
    words = ["-m", "attn_numpy", "convert", "source", "target", "--to", "nnx", "--heads", "2"]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, encoding="utf-8",
        env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout and (tmp_path / "target").exists()


def test_the_page_runs_and_prints_what_it_says(tmp_path, capsys, monkeypatch):
    from safetensors.torch import save_file
    from torch import nn

    page = (ROOT / "docs/weights.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (code,) = (text for kind, text in blocks if kind == "python")
    names: dict = {}
    exec(code, names)
    wanted = names["bert"].encoder.layer[1].attention.self.query.weight
    assert (names["attn"].q_proj.weight == wanted).all()

    (command,) = (text for kind, text in blocks if kind == "sh")
    save_file(nn.MultiheadAttention(24, 4).state_dict(), "in.safetensors")
    python, m, package, *words = command.split()
    assert (python, m, package) == ("python", "-m", "attn_torch")
    assert import_module("attn_torch.convert").main(words) == 0
    printed = next(text for kind, text in blocks if kind == "text" and "->" in text)
    got = capsys.readouterr().out.splitlines()
    pairs = zip(got, printed.splitlines(), strict=True)
    assert [line for line, said in pairs if not line.startswith(said.removesuffix("..."))] == []
