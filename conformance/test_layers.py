"""The chapter on layers: encoder, decoder, stacks, Transformer, tokens to logits; their masks."""

import numpy as np
import pytest

from .cases import models
from .cases.arrays import coins, normal
from .cases.models import B, H, ModelCase, S, T
from .contract import clause
from .mask_spec import causal, padding, sliding_window
from .oracle import reference
from .oracle.reference_layers import within
from .oracle.tolerance import Differs, check_dtype, check_each, close, compare, same
from .subjects.protocol import require

PRE_GELU = {"norm_first": True, "activation": "gelu"}
OPTIONS = {
    "plain": {},
    "pre_norm": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "eps": {"layer_norm_eps": 0.3},
    "no_bias": {"bias": False},
}
SHALLOW = ModelCase("transformer", {"num_encoder_layers": 1, "num_decoder_layers": 1})
LAYER, DEEP = ModelCase("encoder_layer"), ModelCase("encoder", {"num_layers": 3})
DECODER, WHOLE = ModelCase("decoder"), ModelCase("transformer")

SOURCE_LENGTHS, TARGET_LENGTHS = [7, 0, 4], [3, 5, 2]
SOURCE_HIDDEN = np.arange(S) >= np.array(SOURCE_LENGTHS)[:, None]
TARGET_HIDDEN = np.arange(T) >= np.array(TARGET_LENGTHS)[:, None]
LEFT_HIDDEN = np.arange(S) < np.array([0, 2, 5])[:, None]
SOURCE, TARGET = ~SOURCE_HIDDEN[:, None, None], ~TARGET_HIDDEN[:, None, None]
LEFT = ~LEFT_HIDDEN[:, None, None]
LOOK_AHEAD = np.tri(T, dtype=bool)


@clause("LAYER-1")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["encoder_layer", "decoder_layer"])
def test_layer_is_the_papers(subject, kind, options):
    ModelCase(kind, OPTIONS[options]).check(subject)


@clause("LAYER-1")
def test_a_layer_far_from_zero_is_the_papers(subject):
    """There the mean of squares less the square of the mean is below 0, whose root is NaN."""
    case = ModelCase("encoder_layer", {"norm_first": True})
    inputs = {name: x + np.float32(10_000) for name, x in case.inputs().items()}
    exact, naive = (steps["output"] for steps in case.expected(inputs))
    compare(case.run(subject, inputs)["output"], exact, naive, "output far from zero")


@clause("LAYER-1")
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no_norm"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_stack_is_its_layers_and_a_last_norm(subject, kind, norm):
    ModelCase(kind, PRE_GELU | {"norm": norm, "layer_norm_eps": 0.1}).check(subject)


@clause("LAYER-1")
@pytest.mark.parametrize("options", [{}, PRE_GELU], ids=["plain", "pre_norm_gelu"])
def test_transformer_is_both_stacks_with_their_norms(subject, options):
    ModelCase("transformer", options).check(subject)


def tokens(config: dict, hidden=SOURCE_HIDDEN) -> dict[str, np.ndarray]:
    """Return tokens; the sources are padded, and the second target on the left."""
    rng = np.random.default_rng(21)
    src = np.where(hidden, 0, rng.integers(1, config["src_vocab"], (B, S)))
    tgt = rng.integers(1, config["tgt_vocab"], (B, T))
    tgt[1, :2] = tgt[2, 3:] = 0
    return {"src": src, "tgt": tgt}


@clause("LAYER-1")
@pytest.mark.parametrize("positions", ["sinusoidal", "none"])
def test_tokens_become_logits(subject, positions):
    require(subject, "layers")
    call = ModelCase("seq2seq", {"positions": positions})
    inputs, parameters = tokens(call.config), call.parameters()
    got = subject.layer("seq2seq", call.config, parameters, inputs, need_weights=True)
    exact, naive = call.expected(inputs, parameters)
    kept = inputs["tgt"] != 0  # a padding token has no position
    compare(got["output"][kept], exact["output"][kept], naive["output"][kept], "logits")
    name = "transformer.decoder.layers.0.multihead_attn"
    compare(got[name][0], exact[name][0], naive[name][0], name)


@clause("LAYER-1")
def test_tokens_at_far_positions_become_logits(subject):
    """Angles of hundreds of radians: made in float32 they would be off by more than rounding."""
    require(subject, "layers")
    call = ModelCase("seq2seq", {"num_encoder_layers": 1, "num_decoder_layers": 1})
    rng = np.random.default_rng(22)
    inputs = {"src": rng.integers(1, call.config["src_vocab"], (1, 5))}
    inputs["tgt"] = rng.integers(1, call.config["tgt_vocab"], (1, 401))
    parameters = call.parameters()
    got = subject.layer("seq2seq", call.config, parameters, inputs)["output"]
    exact, naive = (steps["output"] for steps in call.expected(inputs, parameters))
    compare(got, exact, naive, "logits")


@clause("LAYER-1")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_too_large_for_its_dtype_is_cut_off_by_relu(subject, dtype):
    require(subject, "layers")
    call = ModelCase("encoder_layer")
    parameters, inputs = call.parameters(dtype), call.inputs(dtype)
    parameters["norm1.weight"][0], parameters["norm1.bias"][0] = 0, 2
    lowest = -4e4 if dtype == "float16" else -3e38
    parameters["linear1.weight"][::2, 0] = lowest  # times 2 it is -inf, which relu makes 0
    got = subject.layer(call.kind, call.config, parameters, inputs)["output"]
    exact, naive = (steps["output"] for steps in call.expected(inputs, parameters))
    compare(got, exact, naive, "output")


@clause("LAYER-1")
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["encoder_layer", "decoder", "transformer"])
def test_other_dtypes(subject, kind, dtype):
    ModelCase(kind).check(subject, dtype_name=dtype)


@clause("LAYER-1")
@pytest.mark.parametrize("kind", ["encoder_layer", "decoder", "transformer"])
def test_sequence_first_changes_the_layout_of_inputs_only(subject, kind):
    require(subject, "layers")
    call = ModelCase(kind)
    inputs, options = call.inputs(), {"need_weights": True}
    allowed = {"src": (SOURCE, None), "memory": (SOURCE, None)}
    if "src" in inputs:
        options["src_key_padding_mask"] = SOURCE_HIDDEN
    if kind != "encoder_layer":
        options["memory_key_padding_mask"] = SOURCE_HIDDEN
    turned = {name: x.swapaxes(0, 1) for name, x in inputs.items()}
    config = call.config | {"batch_first": False}
    got = subject.layer(kind, config, call.parameters(), turned, **options)
    exact, naive = call.expected(inputs, **allowed)
    got["output"] = got["output"].swapaxes(0, 1)
    for name in exact:
        compare(got[name], exact[name], naive[name], f"{name}, sequence first")


# What each mask may look like: the argument, what is allowed, and what is added


def forms(rows: int, columns: int, seed: int) -> dict[str, tuple]:
    rank2, rank4 = coins(seed, rows, columns, true=0.3), coins(seed + 1, B, H, rows, columns)
    added = normal(seed + 2, rows, columns, dtype_name="float32")
    per_head = normal(seed + 3, B, H, rows, columns, dtype_name="float32")
    window = reference.allowed(sliding_window(2, 1), (B, H, rows, columns), 0)
    return {
        "bool": (rank2, ~rank2, None),
        "bool_per_head": (rank4.reshape(-1, rows, columns), ~rank4, None),
        "float": (added, True, added),
        "float_per_head": (per_head, True, per_head),
        "mask": (sliding_window(2, 1), window, None),
    }


FORMS = {
    "src_mask": ("src", forms(S, S, 31)),
    "tgt_mask": ("tgt", forms(T, T, 41)),
    "memory_mask": ("memory", forms(T, S, 51)),
}
KEYS = {
    "src_key_padding_mask": ("src", SOURCE_HIDDEN, padding(SOURCE_LENGTHS), SOURCE),
    "tgt_key_padding_mask": ("tgt", TARGET_HIDDEN, padding(TARGET_LENGTHS), TARGET),
    "memory_key_padding_mask": ("memory", SOURCE_HIDDEN, padding(SOURCE_LENGTHS), SOURCE),
}


@clause("LAYER-2")
@pytest.mark.parametrize("form", forms(1, 1, 0))
@pytest.mark.parametrize("argument", FORMS)
def test_attention_mask_reaches_its_own_attention(subject, argument, form):
    name, known = FORMS[argument]
    given, allowed, bias = known[form]
    SHALLOW.check(subject, {argument: given}, **{name: (allowed, bias)})


@clause("LAYER-2")
@pytest.mark.parametrize("form", ["array", "mask"])
@pytest.mark.parametrize("argument", KEYS)
def test_padding_mask_reaches_its_own_attention(subject, argument, form):
    name, array, mask, allowed = KEYS[argument]
    SHALLOW.check(
        subject, {argument: array if form == "array" else mask}, **{name: (allowed, None)}
    )


@clause("LAYER-2")
@pytest.mark.parametrize("form", ["bool", "float", "mask"])
def test_six_masks_together(subject, form):
    options, allowed = {}, {}
    for argument, (name, known) in FORMS.items():
        options[argument], cells, bias = known[form]
        padded, array, _, keys = KEYS[f"{name}_key_padding_mask"]
        options[f"{padded}_key_padding_mask"] = array
        allowed[name] = (np.logical_and(cells, keys), bias)
    SHALLOW.check(subject, options, **allowed)


@clause("LAYER-2")
@pytest.mark.parametrize("kind", ["decoder_layer", "decoder"])
def test_a_decoder_takes_the_same_masks(subject, kind):
    options = {"tgt_mask": causal(), "memory_mask": sliding_window(1, 2)}
    options |= {"tgt_key_padding_mask": TARGET_HIDDEN, "memory_key_padding_mask": SOURCE_HIDDEN}
    window = reference.allowed(sliding_window(1, 2), (B, H, T, S), 0)
    allowed = {"tgt": (LOOK_AHEAD & TARGET, None), "memory": (window & SOURCE, None)}
    ModelCase(kind).check(subject, options, **allowed)


@clause("LAYER-2")
@pytest.mark.parametrize("look_ahead", ["mask", "bool", "float"])
def test_left_padding_under_a_causal_mask_stays_finite(subject, look_ahead):
    above = ~np.tri(S, dtype=bool)
    added = np.where(above, -np.inf, 0).astype(np.float32)
    given = {"mask": causal(), "bool": above, "float": added}[look_ahead]
    options = {"mask": given, "src_key_padding_mask": LEFT_HIDDEN}
    got = DEEP.check(subject, options, src=(LEFT & ~above, None))["output"]
    check_each(np.isfinite(got), got, "output", "a finite number")


@clause("LAYER-2")
@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
@pytest.mark.parametrize("kind", ["encoder_layer", "encoder"])
def test_an_empty_sample_goes_by_the_policy(subject, kind, policy):
    call = ModelCase(kind, {"empty_rows": policy})
    got = call.check(subject, {"src_key_padding_mask": SOURCE_HIDDEN}, src=(SOURCE, None))
    same(np.isnan(got["output"]).all((1, 2)), [False, policy == "nan", False], "NaN by sample")


GARBAGE = {"other": 3.0, "nan": np.nan, "inf": np.inf, "1e30": 1e30}


def with_garbage(x: np.ndarray, hidden: np.ndarray, garbage: float) -> np.ndarray:
    return np.where(hidden[..., None], np.float32(garbage), x)


@clause("LAYER-3")
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padded_sources_change_nothing_through_three_layers(subject, garbage):
    call, options = DEEP, {"src_key_padding_mask": SOURCE_HIDDEN}
    x = call.inputs()["src"]
    changed = with_garbage(x, SOURCE_HIDDEN, GARBAGE[garbage])
    first, second = (call.run(subject, {"src": y}, **options)["output"] for y in (x, changed))
    same(second[~SOURCE_HIDDEN], first[~SOURCE_HIDDEN], "outputs that are not padding")


@clause("LAYER-3")
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_nothing_through_a_transformer(subject, garbage):
    call, (x, y) = WHOLE, WHOLE.inputs().values()
    options = {"tgt_mask": causal(), "src_key_padding_mask": SOURCE_HIDDEN}
    options |= {"tgt_key_padding_mask": TARGET_HIDDEN, "memory_key_padding_mask": SOURCE_HIDDEN}
    changed = {
        "src": with_garbage(x, SOURCE_HIDDEN, GARBAGE[garbage]),
        "tgt": with_garbage(y, TARGET_HIDDEN, GARBAGE[garbage]),
    }
    first = call.run(subject, {"src": x, "tgt": y}, **options)["output"]
    second = call.run(subject, changed, **options)["output"]
    same(second[~TARGET_HIDDEN], first[~TARGET_HIDDEN], "outputs that are not padding")
    kept = np.isfinite(second) | TARGET_HIDDEN[..., None]
    check_each(kept, second, "output", "a finite number beside padding")


@clause("LAYER-3")
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_equals_its_trimmed_samples(subject, side):
    call, hidden = DEEP, SOURCE_HIDDEN if side == "right" else LEFT_HIDDEN
    x = call.inputs()["src"]
    got = call.run(subject, {"src": x}, src_key_padding_mask=hidden)["output"]
    for b in np.flatnonzero(~hidden.all(1)):
        kept = ~hidden[b]
        exact, naive = call.expected({"src": x[b : b + 1, kept]})
        compare(got[b, kept], exact["output"][0], naive["output"][0], f"sample {b} as if alone")


@clause("LAYER-3")
@pytest.mark.parametrize("positions", ["sinusoidal", "none"])
def test_padded_tokens_equal_trimmed_ones_on_either_side(subject, positions):
    require(subject, "layers")
    call = ModelCase("seq2seq", {"positions": positions})
    given, parameters = tokens(call.config, LEFT_HIDDEN), call.parameters()
    got = subject.layer("seq2seq", call.config, parameters, given)["output"]
    for b in range(B):
        alone = {side: row[b : b + 1, row[b] != 0] for side, row in given.items()}
        exact, naive = call.expected(alone, parameters)
        kept = given["tgt"][b] != 0
        compare(got[b, kept], exact["output"][0], naive["output"][0], f"sample {b} as if alone")


@clause("LAYER-4")
@pytest.mark.parametrize("kind", models.INPUTS)
def test_every_attentions_weights_can_be_had(subject, kind):
    require(subject, "layers")
    call = ModelCase(kind)
    inputs, allowed, options = call.inputs(), {}, {}
    if "src" in inputs:
        allowed["src"], options["src_key_padding_mask"] = (LEFT, None), LEFT_HIDDEN
    if "tgt" in inputs:
        allowed["tgt"], options["tgt_mask"] = (LOOK_AHEAD, None), causal()
    got = call.check(subject, options, **allowed)
    attentions = {name.rpartition(".q_proj")[0] for name in call.parameters() if "q_proj" in name}
    if set(got) != attentions | {"output"}:
        raise Differs(f"weights: expected those of {sorted(attentions)}, got {sorted(got)}")


@clause("LAYER-4")
@pytest.mark.parametrize("kind", models.INPUTS)
def test_asking_for_weights_does_not_change_the_output(subject, kind):
    call = ModelCase(kind)
    inputs = call.inputs()
    plain, asked = (call.run(subject, inputs, need_weights=n)["output"] for n in (False, True))
    exact, naive = call.expected(inputs)
    compare(plain, exact["output"], naive["output"], "output without weights")
    close(asked, plain, exact["output"], naive["output"], "output with weights, and without")


@clause("LAYER-4")
def test_weights_of_two_layers_differ(subject):
    got = WHOLE.run(subject, WHOLE.inputs(), need_weights=True)
    for part in ("encoder", "decoder"):
        own = list(within(got, f"{part}.layers.").items())
        names = [(a, b) for a, _ in own for b, _ in own if a < b and a[2:] == b[2:]]
        assert names, f"LAYER-4: one layer in the {part}"
        for a, b in names:
            far = abs(dict(own)[a] - dict(own)[b]).max()
            assert far > 0.01, f"LAYER-4: {part} layers {a} and {b} give the same weights"


TRAINED = {
    "left_padding": {"mask": causal(), "src_key_padding_mask": LEFT_HIDDEN},
    "soft_float_mask": {"mask": normal(61, S, S, dtype_name="float32")},
    "float_ones": {"mask": np.ones((S, S), np.float32)},
    "empty_sample": {"src_key_padding_mask": SOURCE_HIDDEN},
}


@clause("LAYER-5")
@pytest.mark.parametrize("masks", TRAINED)
def test_training_without_dropout_is_evaluation(subject, masks):
    inputs, options = DEEP.inputs(), TRAINED[masks]
    evaluated, trained = (
        DEEP.run(subject, inputs, training=training, **options)["output"]
        for training in (False, True)
    )
    same(trained, evaluated, "training with a dropout of 0, against evaluation")


@clause("LAYER-5")
@pytest.mark.parametrize("kind", ["decoder", "transformer"])
def test_a_decoder_in_training_without_dropout_is_evaluation(subject, kind):
    call, masks = ModelCase(kind), {"tgt_mask": causal(), "memory_key_padding_mask": SOURCE_HIDDEN}
    evaluated, trained = (
        call.run(subject, call.inputs(), training=training, **masks)["output"]
        for training in (False, True)
    )
    same(trained, evaluated, "training with a dropout of 0, against evaluation")


@clause("LAYER-5")
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("kind", ["encoder_layer", "decoder_layer"])
def test_a_dropout_of_one_leaves_the_residuals_alone(subject, kind, norm_first):
    call = ModelCase(kind, {"dropout": 1.0, "norm_first": norm_first})
    inputs, silent = call.inputs(), call.parameters()
    for name in silent:
        if "out_proj" in name or "linear2" in name:
            silent[name] = np.zeros_like(silent[name])
    got = call.run(subject, inputs, training=True)["output"]
    exact, naive = call.expected(inputs, silent)
    compare(got, exact["output"], naive["output"], "output with every sublayer dropped")


@clause("LAYER-5")
def test_evaluation_drops_nothing_and_training_does(subject):
    require(subject, "layers")
    inputs, config = DEEP.inputs(), DEEP.config | {"dropout": 0.4}
    call = ("encoder", config, DEEP.parameters(), inputs)
    plain = DEEP.run(subject, inputs)["output"]
    same(subject.layer(*call, seed=1)["output"], plain, "evaluation with a dropout of 0.4")
    first, again, second = (
        subject.layer(*call, training=True, seed=seed)["output"] for seed in (1, 1, 2)
    )
    same(again, first, "the same seed")
    assert abs(second - first).max() > 1e-2, "LAYER-5: two seeds drop the same"


@clause("LAYER-5")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_output_keeps_its_dtype_in_training(subject, dtype):
    call = ModelCase("decoder_layer", {"dropout": 0.4})
    inputs = call.inputs(dtype)
    got = call.run(subject, inputs, training=True, seed=3)["output"]
    check_dtype(got, inputs["tgt"].dtype, "output in training")
