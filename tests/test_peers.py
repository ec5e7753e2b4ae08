"""Peers: the registry, what the adapters declare, and what is known of the libraries they drive.

A fact that is pinned here was measured. Where a library's new version ends one, its row changes,
and so does what is said of the library anywhere else.
"""

import ast
import os
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_isolation import FRAMEWORKS, OURS, imported, refuse

from conformance import subjects
from conformance.cases.arrays import coins
from conformance.cases.attention import GROUPED, PLAIN, SQUARE, Case, Shape
from conformance.cases.heads import ROTARY, check_turned
from conformance.mask_spec import allow, causal, padding
from conformance.oracle.tolerance import Differs, compare
from conformance.reports.diagnosis import name_of
from conformance.reports.recorded import RecordedCall
from conformance.subjects.adapter import Plugged
from conformance.subjects.peers import PEERS
from conformance.subjects.protocol import NotOffered

FOLDER = Path(subjects.__file__).parent / "peers"
LIBRARIES = {"keras", "equinox", "onnx", "onnxruntime", "transformers", "x_transformers"}
METHODS = {"weights": "weights", "gradients": "gradients", "multihead": "multihead"}
METHODS |= {"parameters": "parameters", "cache": "decoding", "attention": "attention"}
METHODS |= {"rotary": "rotary"}


def usable(name: str) -> bool:
    """Whether this process can have a peer: its packages are there, and it is told what it must."""
    _, packages, environment, _ = PEERS[name]
    told = all(os.environ.get(variable) == value for variable, value in environment.items())
    return told and all(find_spec(package.replace("-", "_")) for package in packages)


HERE = [name for name in PEERS if usable(name)]


def peer(name: str) -> Plugged:
    (subject,) = subjects.plug(name)
    return subject


# The registry


@pytest.mark.parametrize("name", PEERS)
def test_registry_names_a_class_that_is_there(name):
    adapter, packages, environment, about = PEERS[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), name
    module, _, attribute = adapter.partition(":")
    source = FOLDER / f"{module.removeprefix('conformance.subjects.peers.')}.py"
    classes = {n.name for n in ast.parse(source.read_text("utf-8")).body if hasattr(n, "bases")}
    assert attribute in classes, f"{source.name} has no class {attribute}"
    assert packages and all(re.fullmatch(r"[a-z-]+", package) for package in packages), packages
    assert all(isinstance(x, str) for pair in environment.items() for x in pair), environment
    assert about and "\n" not in about


def test_every_name_stands_for_another_class():
    adapters = [peer.adapter for peer in PEERS.values()]
    assert len(set(adapters)) == len(adapters)


def test_registry_imports_no_framework():
    found = imported("import conformance.subjects.peers")
    assert "conformance" in found
    refuse(found, FRAMEWORKS | LIBRARIES | OURS - {"conformance"}, "the registry of peers")


def test_find_knows_a_peer_by_its_bare_name():
    assert subjects.find("torch-sdpa").__module__ == "conformance.subjects.peers.torch_sdpa"
    with pytest.raises(ValueError, match=r"or a peer \(torch-sdpa, .*\): got torch-spda"):
        subjects.find("torch-spda")


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_keras_refuses_a_process_of_another_backend(monkeypatch, backend):
    pytest.importorskip("ml_dtypes" if backend == "numpy" else backend)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    text = rf"^KERAS_BACKEND must be {backend} in this peer's process: got tensorflow$"
    with pytest.raises(RuntimeError, match=text):
        subjects.find(f"keras-ops-{backend}")()


# What an adapter declares


def test_peers_of_what_is_installed_are_tested():
    """Here are those of PyTorch, JAX and flax at least; others where their packages are."""
    own = {n for n, peer in PEERS.items() if set(peer.packages) <= {"torch", "jax", "flax"}}
    assert len(own) == 14 and own <= set(HERE), sorted(own - set(HERE))


@pytest.mark.parametrize("name", HERE)
def test_peer_has_what_it_declares(name):
    subject = peer(name)  # refuses a capability that is not known
    for capability, method in METHODS.items():
        if capability in subject.capabilities:
            assert hasattr(subject.adapter, method), f"{name} declares {capability}"
    assert set(subject.dtypes) <= {"float32", "float64", "float16", "bfloat16"}
    assert all(re.match(r"\d", version) for version in subject.versions().values())


FAST = {name for name in PEERS if name.startswith("torch-mha-fast")}  # self-attention alone


@pytest.mark.parametrize("case", [PLAIN, Case("square", SQUARE)], ids=["plain", "square"])
@pytest.mark.parametrize("name", HERE)
def test_plain_attention_is_the_formula(name, case):
    if name in FAST and case is PLAIN:
        with pytest.raises(NotOffered, match=r"^the fast path takes self-attention alone$"):
            peer(name).attention(*case.inputs("float32"))
        return
    exact, naive = case.expected("float32")
    got = peer(name).attention(*case.inputs("float32"))
    compare(got, exact["output"], naive["output"], "output")


RAGGED = Case("ragged", mask=padding([7, 3, 4]))  # no row of nothing: there they differ
RAGGED_SQUARE = Case("ragged_square", SQUARE, padding([7, 3, 4]))


@pytest.mark.parametrize("name", HERE)
def test_mask_points_the_way_that_is_declared(name):
    subject, case = peer(name), RAGGED_SQUARE if name in FAST else RAGGED
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    call = case.inputs("float32"), case.options("float32")
    compare(subject.attention(*call[0], **call[1]), exact, naive, "output")
    if subject.mask_polarity != "add":
        subject.mask_polarity = {"attend": "hide", "hide": "attend"}[subject.mask_polarity]
        got = subject.attention(*call[0], **call[1])
        with pytest.raises(Differs, match=r"^output at \("):
            compare(got, exact, naive, "output")
        assert name_of(RecordedCall(*call, got)) == "inverted"


# What is known

CASES = {
    "empty": Case("empty", mask=padding([7, 0, 4])),
    "empty, T == S": Case("empty_square", SQUARE, padding([7, 0, 4])),
    "NaN in a hidden key": RAGGED,
    "NaN in a hidden value": RAGGED,
    "NaN in a hidden key, T == S": RAGGED_SQUARE,
    "causal, T < S": Case("causal", mask=causal()),
    "causal, T == 1": Case("causal_one", Shape(3, 2, 2, 1, 7, 11, 13), causal()),
    "causal and padding": Case("both", SQUARE, causal() & padding([7, 3, 4])),
    "grouped": Case("grouped", GROUPED, allow(coins(5, 3, 4, 5, 7, true=0.7))),
    "softcap": Case("softcap", softcap=0.9, bias="rank2"),
    "sinks": Case("sinks", mask=padding([7, 3, 4]), sinks="normal"),
}


def verdict(subject: Plugged, case: Case, role: str | None = None) -> str:
    """Return the name of what a peer does, by the suite's own judge; "conforms" within budget."""
    inputs = dict(zip(("query", "key", "value"), case.inputs("float32"), strict=True))
    if role:
        hidden = ~case.allowed().any((1, 2))
        inputs[role].swapaxes(1, 2)[hidden] = np.nan
    options = case.options("float32")
    got = subject.attention(*inputs.values(), **options)
    took = name_of(RecordedCall(tuple(inputs.values()), options, got))
    if took is None:
        exact, naive = (steps["output"] for steps in case.expected("float32"))
        compare(got, exact, naive, "output")
    return took or "conforms"


FACTS = {
    "torch-sdpa": {
        "empty": "conforms",
        "NaN in a hidden key": "poisoned",
        "causal, T < S": "top-left",
        "grouped": "conforms",
    },
    "torch-mha-train": {"empty": "conforms", "empty, T == S": "conforms"},
    "torch-mha-train-weights": {"empty": "nan", "empty, T == S": "nan"},
    "torch-mha-eval": {"empty": "conforms", "empty, T == S": "conforms"}
    | {"NaN in a hidden key, T == S": "poisoned"},
    "torch-mha-fast": {"empty, T == S": "nan"},
    "torch-flex": {"empty": "conforms", "sinks": "conforms", "NaN in a hidden key": "conforms"}
    | {"NaN in a hidden value": "poisoned"},
    "jax-nn": {
        "empty": "mean",
        "NaN in a hidden key": "conforms",
        "NaN in a hidden value": "poisoned",
        "causal, T < S": "top-left",
    },
    "jax-splash": {"empty": "nan", "NaN in a hidden key": "conforms", "grouped": "conforms"}
    | {"NaN in a hidden value": "poisoned"},
    "nnx-function": {"empty": "mean", "causal, T < S": "top-left", "grouped": "conforms"},
    "nnx-mha": {"empty": "mean", "causal, T < S": "top-left", "NaN in a hidden key": "conforms"},
    "linen-mha": {"empty": "mean", "NaN in a hidden key": "conforms"}
    | {"NaN in a hidden value": "poisoned"},
    "equinox-mha": {"empty": "mean", "NaN in a hidden key": "conforms"}
    | {"NaN in a hidden value": "poisoned"},
    "keras-ops-numpy": {"empty": "mean", "causal, T < S": "top-left"},
    "keras-mha-numpy": {"empty": "mean", "causal, T < S": "top-left"},
    "keras-mha-numpy-scores": {"empty": "conforms", "NaN in a hidden value": "poisoned"},
    "keras-ops-torch": {"empty": "mean", "NaN in a hidden key": "poisoned"},
    "keras-mha-torch-scores": {"empty": "conforms", "NaN in a hidden key": "conforms"},
    "keras-ops-jax": {"empty": "mean", "NaN in a hidden key": "conforms"},
    "keras-mha-jax-scores": {"empty": "conforms", "NaN in a hidden key": "conforms"},
    "onnx-reference": {"empty": "conforms", "NaN in a hidden key": "poisoned"}
    | {"causal, T < S": "top-left"},
    "onnxruntime": {"empty": "conforms", "grouped": "conforms", "causal, T < S": "top-left"},
    "transformers-eager": {"empty": "nan", "grouped": "conforms"},
    "transformers-eager-own": {"empty": "mean"},
    "transformers-gpt-oss": {"empty": "mean", "sinks": "conforms"},
    "transformers-sdpa": {
        "empty": "conforms",
        "causal and padding": "no-causal",
        "causal, T == 1": "bottom-right",
    },
    "x-transformers": {
        "sinks": "conforms",
        "grouped": "tiled",
        "softcap": "softcap-last",
        "causal, T < S": "bottom-right",
    },
    "x-transformers-flash": {"grouped": "tiled", "causal, T < S": "bottom-right"},
}
ROWS = [(name, case) for name, facts in FACTS.items() if name in HERE for case in facts]


@pytest.mark.parametrize(("name", "case"), ROWS, ids=[f"{n}-{c}" for n, c in ROWS])
def test_fact(name, case):
    subject, wanted = peer(name), FACTS[name][case]
    role = next((role for role in ("key", "value") if f"hidden {role}" in case), None)
    got = verdict(subject, CASES[case], role)
    text = f"{name}, {case}: {got!r}, where {wanted!r} is pinned for {subject.versions()}"
    assert got == wanted, text


TURNS = {"transformers-eager": "halves", "transformers-eager-own": "halves"}
TURNS |= {"x-transformers": "interleaved", "equinox-mha": "halves"}
NEAR = np.array([[0, 1, 5], [3, 2, 1], [4, 6, 0]])


@pytest.mark.parametrize("name", [n for n in HERE if "rotary" in peer(n).capabilities])
def test_peer_turns_the_pairs_that_it_is_known_for(name):
    """And no others without a word; ONNX' operator has both."""
    taken = set()
    for pairs in ("halves", "interleaved"):
        with suppress(NotOffered):
            check_turned(peer(name), ROTARY[pairs], NEAR, "float32")
            taken.add(pairs)
    assert taken == ({TURNS[name]} if name in TURNS else {"halves", "interleaved"})


def test_torch_mha_reads_its_causal_hint_by_its_path():
    """On the fast path it is full attention, without a word; on the slow one it is refused."""
    case = Case("causal", SQUARE, causal())
    inputs = case.inputs("float32")
    got = peer("torch-mha-fast").adapter.attention(*inputs, causal=True)
    assert name_of(RecordedCall(inputs, {"mask": causal()}, got)) == "unmasked"
    for name in ("torch-mha-train", "torch-mha-eval"):
        with pytest.raises(RuntimeError, match=r"^Need attn_mask if specifying the is_causal hint"):
            peer(name).adapter.attention(*inputs, causal=True)


# What answered, and what was done to a mask


def after(name: str, case: Case = RAGGED_SQUARE, mask=None):
    """Return a peer's adapter after a call."""
    subject = peer(name)
    if mask is None:
        subject.attention(*case.inputs("float32"), **case.options("float32"))
    else:
        subject.adapter.attention(*case.inputs("float32"), mask=mask)
    return subject.adapter


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("torch-mha-fast", "fast path"),
        ("torch-mha-eval", "slow path"),
        ("torch-mha-train", "slow path"),
        ("torch-sdpa-math", "MATH kernel"),
        ("nnx-mha", "by jax.nn"),
        ("linen-mha", ""),
    ],
)
def test_a_peer_knows_the_path_that_answered(name, path):
    assert after(name).path == path


def test_the_fast_path_offers_nothing_that_the_slow_one_would_answer(monkeypatch):
    import torch

    bias = np.zeros((3, 2, 7, 7), "float32")
    with pytest.raises(NotOffered, match=r"^the fast path does not take this call$"):
        after("torch-mha-fast", mask=bias)
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    with pytest.raises(NotOffered, match=r"^the fast path does not take this call$"):
        after("torch-mha-fast")


def test_nan_in_a_hidden_key_stays_hidden_on_the_fast_path():
    case = Case("small", Shape(1, 2, 2, 3, 3, 1, 1), padding([2]))
    try:
        assert verdict(peer("torch-mha-fast"), case, "key") == "conforms"
    except NotOffered:
        pytest.skip("inf - inf is not computed as such by this machine's matrix product")
    assert verdict(peer("torch-mha-eval"), case, "key") == "poisoned"


def test_keys_of_nan_and_inf_reach_the_fast_path_by_finite_tokens():
    from conformance.subjects.peers import heads

    inputs = [x.copy() for x in RAGGED_SQUARE.inputs("float32")]
    inputs[1][:, :, 4], inputs[1][:, :, 3] = np.nan, -np.inf
    asked = heads.Packed(*inputs)
    assert np.isfinite(asked.x).all()
    with np.errstate(all="ignore"):
        made = asked.x @ asked.parameters["k_proj.weight"].T
    keys = asked.split(made)[..., : inputs[1].shape[3]]
    np.testing.assert_array_equal(keys[:, :, :3], inputs[1][:, :, :3])
    assert np.isneginf(keys[:, :, 3]).all() and not np.isfinite(keys[:, :, 4]).any()


@pytest.mark.parametrize(
    ("name", "did"),
    [
        ("torch-mha-eval", "(3, 2, 7, 7) made (6, 7, 7): the layer takes no more than three axes"),
        ("torch-flex", "a mask_mod that looks the cell up: the library takes no array"),
        ("jax-nn", None),
    ],
)
def test_a_peer_says_what_it_did_to_a_mask(name, did):
    got = after(name).did
    assert got == ((did,) if did else ())


def test_flex_offers_no_array_without_its_axes_named():
    with pytest.raises(NotOffered, match="it takes no array"):
        after("torch-flex", mask=np.ones((7, 7), bool))


def test_nnx_cache_takes_one_token_a_call_and_overwrites_beyond_its_capacity():
    from conformance.cases.decoding import STREAMS

    stream = STREAMS["attention"]
    x, decoding = stream.tokens(), stream.start(peer("nnx-mha"), capacity=2)
    with pytest.raises(ValueError, match=r"^Autoregressive cache shape error"):
        decoding.feed(x[:, :2])
    for t in range(3):
        got = decoding.feed(x[:, t : t + 1])
    assert np.isfinite(got).all() and decoding.lengths.tolist() == [3] * 3


def test_module_does_not_offer_what_its_projections_would_mix():
    subject = peer("torch-mha-train-weights")
    query, key, value = (np.array(x) for x in PLAIN.inputs("float32"))
    query[2, 1, 3] = np.nan
    with pytest.raises(NotOffered, match="spreads NaN or inf of one head to all heads"):
        subject.attention(query, key, value)
    query[2, :, 3] = np.nan
    assert np.isnan(subject.attention(query, key, value)[2, :, 3]).all()
