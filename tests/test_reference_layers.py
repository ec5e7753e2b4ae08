"""The oracle for layers is held against torch.nn in float64, and its budget against float32.

torch.nn runs in training mode with a dropout of 0: in evaluation it takes another path, which
reads masks differently. The small parts are held against numbers worked out by hand.
"""

import math
import subprocess
import sys

import numpy as np
import pytest

from conformance.cases import models
from conformance.cases.models import ModelCase
from conformance.oracle import expected_layers, reference_layers
from conformance.oracle.naive_layers import Naive
from conformance.oracle.tolerance import allowance

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")

LOOK_AHEAD = np.tri(5, dtype=bool)
PADDED = np.arange(7) >= np.array([7, 4, 2])[:, None]  # of the sources
OPTIONS = {
    "plain": {},
    "pre_norm": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "eps": {"layer_norm_eps": 0.3},
    "no_bias": {"bias": False},
    "pre_norm_gelu": {"norm_first": True, "activation": "gelu", "layer_norm_eps": 0.03},
}


def packed(parameters: dict) -> dict:
    """Return the parameters by torch.nn's names, the three input projections in one."""
    found = {n: x for n, x in parameters.items() if not any(f"{p}_proj" in n for p in "qkv")}
    for name in parameters:
        if ".q_proj." in name:
            parts = [parameters[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            found[name.replace("q_proj.", "in_proj_")] = np.concatenate(parts)
    return found


def torch_model(kind: str, config: dict, dtype):
    """Return torch.nn's own model, in training mode with a dropout of 0."""
    from torch import nn

    names = ("activation", "layer_norm_eps", "norm_first", "bias")
    options = {name: config[name] for name in names if name in config}
    options |= {"batch_first": True, "dtype": dtype}
    sizes = (config["d_model"], config["nhead"], config["dim_feedforward"], 0.0)
    if kind == "transformer":
        depths = (config["num_encoder_layers"], config["num_decoder_layers"])
        model = nn.Transformer(*sizes[:2], *depths, *sizes[2:], **options)
    else:
        part = "Encoder" if "encoder" in kind else "Decoder"
        model = getattr(nn, f"Transformer{part}Layer")(*sizes, **options)
    if kind in ("encoder", "decoder"):
        last = {"eps": options.get("layer_norm_eps", 1e-5), "bias": config.get("bias", True)}
        norm = nn.LayerNorm(sizes[0], **last, dtype=dtype) if config.get("norm") else None
        model = getattr(nn, f"Transformer{part}")(model, config["num_layers"], norm)
    return model.train()


def torch_output(call: ModelCase, inputs: dict, masks: dict) -> np.ndarray:
    import torch

    dtype = getattr(torch, inputs[next(iter(inputs))].dtype.name)
    model = torch_model(call.kind, call.config, dtype)
    own = packed(call.parameters(inputs[next(iter(inputs))].dtype.name))
    model.load_state_dict({name: torch.from_numpy(x) for name, x in own.items()})
    arrays = [torch.from_numpy(x) for x in inputs.values()]
    with torch.no_grad():
        output = model(*arrays, **{name: torch.from_numpy(x) for name, x in masks.items()})
    return output.numpy()


def masked(kind: str) -> tuple[dict, dict]:
    """Return masks by torch.nn's names, and what is seen by the oracle's."""
    source = ~PADDED[:, None, None]
    if kind in ("encoder_layer", "encoder"):
        return {"src_key_padding_mask": PADDED}, {"src": (source, None)}
    masks = {"tgt_mask": ~LOOK_AHEAD, "memory_key_padding_mask": PADDED}
    allowed = {"tgt": (LOOK_AHEAD, None), "memory": (source, None)}
    if kind == "transformer":
        return masks | {"src_key_padding_mask": PADDED}, allowed | {"src": (source, None)}
    return masks, allowed


def check_against_torch(call: ModelCase, masks: dict, allowed: dict) -> None:
    """Compare the oracle's output with torch.nn's, within a thousand roundings of float64."""
    inputs = call.inputs("float64")
    parameters = call.parameters("float64")
    exact = reference_layers.run(
        call.kind, parameters, call.config, inputs, call.masks(inputs, **allowed)
    )
    theirs = torch_output(call, inputs, masks)
    error = abs(exact["output"] - theirs).max()
    assert error <= 1000 * 2.0**-53 * abs(theirs).max(), f"off by {error:.3g}"


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", models.INPUTS)
def test_oracle_is_torchs_own_model_in_float64(kind, options):
    pytest.importorskip("torch")
    masks, allowed = masked(kind)
    check_against_torch(ModelCase(kind, OPTIONS[options]), masks, allowed)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_last_norm_of_a_stack_is_torchs(kind):
    pytest.importorskip("torch")
    check_against_torch(ModelCase(kind, {"norm": True, "layer_norm_eps": 0.1}), {}, {})


def test_float_masks_are_added_as_torch_adds_them():
    pytest.importorskip("torch")
    bias = np.random.default_rng(3).normal(size=(7, 7))
    check_against_torch(ModelCase("encoder"), {"mask": bias}, {"src": (True, bias)})


def test_weights_have_the_attentions_names():
    call = ModelCase("transformer")
    found = reference_layers.run(
        call.kind, call.parameters(), call.config, call.inputs(), call.masks(call.inputs())
    )
    attentions = {name.rpartition(".q_proj")[0] for name in call.parameters() if "q_proj" in name}
    assert set(found) == attentions | {"output"}
    for name, weights in found.items():
        if name != "output":
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-14)
    assert found["decoder.layers.2.multihead_attn"].shape == (3, 2, 5, 7)


def test_norm_is_worked_out_by_hand():
    x, p = np.array([[[1.0, 3.0, 8.0]]]), {"n.weight": np.array([1.0, 2.0, -1.0])}
    found = reference_layers.EXACT.norm(x, p | {"n.bias": np.array([0.0, 0.5, 1.0])}, "n", 0.34)
    root = math.sqrt((9 + 1 + 16) / 3 + 0.34)  # mean 4
    np.testing.assert_allclose(found[0, 0], [-3 / root, 0.5 - 2 / root, 1 - 4 / root], rtol=1e-15)


def test_gelu_is_exact():
    """Phi(1) and Phi(-5) to fifteen digits; the tanh formula differs in the fourth."""
    assert reference_layers.gelu(1.0) == pytest.approx(0.841344746068543, rel=1e-15)
    assert reference_layers.gelu(-5.0) == pytest.approx(-5 * 2.866515718791939e-07, rel=1e-14)


def test_positions_count_what_is_kept():
    kept = np.array([[False, True, True, False, True]])
    found = reference_layers.sinusoids(kept, 4)[0]
    for row, position in ((1, 0), (2, 1), (4, 2)):
        angles = [position, position, position / 100, position / 100]
        wanted = [f(a) for f, a in zip([math.sin, math.cos] * 2, angles, strict=True)]
        np.testing.assert_allclose(found[row], wanted, rtol=1e-15)


def test_token_masks_hide_padding_and_the_future():
    src, tgt = np.array([[0, 4, 3]]), np.array([[6, 0, 5]])
    masks = reference_layers.token_masks({"nhead": 1}, src, tgt)
    allowed = {name: own["allowed"][0, 0].astype(int).tolist() for name, own in masks.items()}
    assert allowed["src"] == allowed["memory"] == [[0, 1, 1]] * 3
    assert allowed["tgt"] == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]


def tokens(config: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    src = rng.integers(1, config["src_vocab"], (3, 7)) * ~PADDED
    return {"src": src, "tgt": rng.integers(1, config["tgt_vocab"], (3, 5))}


@pytest.mark.parametrize("positions", ["sinusoidal", "none"])
def test_tokens_are_embedded_then_transformed_then_projected(positions):
    call = ModelCase("seq2seq", {"positions": positions})
    p, given = call.parameters("float64"), tokens(call.config)
    found = reference_layers.run("seq2seq", p, call.config, given, {})
    x = {side: p[f"{side}_embedding.weight"][given[side]] for side in given}
    if positions == "sinusoidal":
        for side in x:
            own = reference_layers.sinusoids(given[side] > 0, 14)
            x[side] = x[side] * math.sqrt(14) + own
    own = reference_layers.within(p, "transformer.")
    masks = reference_layers.token_masks(call.config, *given.values())
    inside = reference_layers.run("transformer", own, call.config, x, masks)
    logits = inside["output"] @ p["projection.weight"].T + p["projection.bias"]
    np.testing.assert_allclose(found["output"], logits, rtol=1e-12)


# The budget


def orders(kind: str) -> tuple[dict, dict]:
    call = ModelCase(kind, {"activation": "gelu"})
    inputs = tokens(call.config) if kind == "seq2seq" else call.inputs("float64")
    allowed = {}
    if kind != "seq2seq":
        _, allowed = masked(kind)
        name = "src" if "src" in inputs else "memory"
        bias = np.random.default_rng(4).normal(size=(inputs.get("tgt", inputs[name]).shape[1], 7))
        allowed |= {name: (allowed[name][0], bias if kind != "transformer" else None)}
    return call.expected(inputs, call.parameters("float64"), **allowed)


@pytest.mark.parametrize("kind", models.CONFIGS)
def test_turning_a_model_there_and_back_changes_nothing(monkeypatch, kind):
    """With the oracle, whose sums know no order, in the place of the naive formula."""
    monkeypatch.setattr(expected_layers, "Naive", lambda folded: reference_layers.EXACT)
    exact, naive = orders(kind)
    for name in exact:
        np.testing.assert_array_equal(naive[name], exact[name], name)


def test_every_order_is_another_calculation(monkeypatch):
    asked = []

    class Recorded(Naive):
        def linear(self, x, p, name):
            asked[-1].append(np.asarray(x @ p[f"{name}.weight"].T).tobytes())
            return super().linear(x, p, name)

    def started(folded):
        asked.append([folded])
        return Recorded(folded)

    monkeypatch.setattr(expected_layers, "Naive", started)
    forgetful = expected_layers.layers.__wrapped__  # nothing remembered
    monkeypatch.setattr(expected_layers, "layers", forgetful)
    call = ModelCase("encoder_layer")
    call.expected(call.inputs())
    assert len({tuple(sums) for sums in asked}) == len(asked) == 16


def test_a_float32_transformer_of_six_and_six_layers_fits_the_budget():
    """torch.nn's own, as a stranger to both formulas: it needs some of the budget, not all."""
    pytest.importorskip("torch")
    depths = {"num_encoder_layers": 6, "num_decoder_layers": 6, "dim_feedforward": 67}
    call = ModelCase("transformer", depths)
    masks, allowed = masked("transformer")
    inputs = call.inputs()
    exact, naive = call.expected(inputs, **allowed)
    error = abs(torch_output(call, inputs, masks) - exact["output"]).max()
    share = error / allowance(exact["output"], naive["output"], np.float32)
    assert 0.05 < share < 0.8, f"{share:.2f} of the budget"


def test_oracle_imports_no_backend():
    code = (
        "import sys, conformance.oracle.expected_layers, conformance.cases.models; "
        "sys.exit(sum(n in sys.modules for n in ('torch', 'jax', 'attn_numpy', 'attn_torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
