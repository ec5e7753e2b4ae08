"""Both documents' examples of layers and models: encoder, decoder, Transformer, generation."""

from functools import cache

import numpy as np
import pytest

from conformance.cases.arrays import normal
from conformance.cases.decoding import part
from conformance.cases.models import ModelCase, draw, shapes
from conformance.contract import clause
from conformance.documents.printed import KEY_PADDING, SOURCE, embedded, table
from conformance.documents.test_breakdown import SENTENCE
from conformance.mask_spec import causal
from conformance.oracle import reference_layers
from conformance.oracle.tolerance import compare, same
from conformance.subjects.protocol import require

N, E, S, T = 5, 16, 10, 20
GUIDE = {"d_model": E, "nhead": 2, "dim_feedforward": 64, "empty_rows": "nan"}
ENCODER, DECODER = ModelCase("encoder_layer", GUIDE), ModelCase("decoder_layer", GUIDE)
DEPTHS = {"num_encoder_layers": 1, "num_decoder_layers": 1}
WHOLE = ModelCase("transformer", GUIDE | DEPTHS)
SEQUENCE_FIRST = {"batch_first": False}

LENGTHS = np.array([12, 8, 10, 7, 17])
TARGET = np.where(np.arange(T) < LENGTHS[:, None], 3 + np.arange(T), 0)
SOURCE_HIDDEN, TARGET_HIDDEN = table(KEY_PADDING).astype(bool), TARGET == 0
SRC, TGT = embedded(SOURCE, E), embedded(TARGET, E)
ZEROS, ONES = np.zeros((S, S), np.float32), np.ones((S, S), np.float32)
SEEN = {
    "src": (~SOURCE_HIDDEN[:, None, None], None),
    "tgt": (~TARGET_HIDDEN[:, None, None] & np.tri(T, dtype=bool), None),
    "memory": (~SOURCE_HIDDEN[:, None, None] & np.tri(T, S, dtype=bool), None),
}


def run(subject, call: ModelCase, inputs: dict, **options) -> dict[str, np.ndarray]:
    """The document's call: sequence first, evaluation, here with its outputs batch-first again."""
    require(subject, "layers")
    turned = {name: x.swapaxes(0, 1) for name, x in inputs.items()}
    arguments = (call.kind, call.config | SEQUENCE_FIRST, call.parameters(), turned)
    found = subject.layer(*arguments, **options)
    batch = next(iter(inputs.values())).shape[0]
    assert found["output"].shape[1:] == (batch, call.config["d_model"])
    return found | {"output": found["output"].swapaxes(0, 1)}


def four_masks(subject) -> dict:
    """Return the masks of the document's decoder, made by its own builders."""
    return {
        "tgt_mask": subject.look_ahead_mask(T, T),
        "memory_mask": subject.look_ahead_mask(T, S),
        "tgt_key_padding_mask": subject.sequence_mask(TARGET, 0),
        "memory_key_padding_mask": subject.sequence_mask(SOURCE, 0),
    }


@clause("DOC-A8")
def test_an_encoder_layer_with_its_padding_mask_has_no_nan(subject):
    found = run(subject, ENCODER, {"src": SRC}, src_mask=ZEROS, src_key_padding_mask=SOURCE_HIDDEN)
    assert np.isfinite(found["output"]).all(), "DOC-A8: NaN in the encoder layer's output"
    exact, naive = ENCODER.expected({"src": SRC}, src=SEEN["src"])
    compare(found["output"], exact["output"], naive["output"], "output")


@clause("DOC-A9")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_layers_mask_of_float_ones_is_one_of_zeros(subject, training):
    require(subject, "layers")
    call = ModelCase("encoder_layer", GUIDE | {"dropout": 0.0})
    exact, naive = call.expected({"src": SRC}, src=SEEN["src"])
    for mask, name in ((ZEROS, "zeros"), (ONES, "ones")):
        options = {"src_mask": mask, "src_key_padding_mask": SOURCE_HIDDEN, "training": training}
        got = call.run(subject, {"src": SRC}, **options)["output"]
        compare(got, exact["output"], naive["output"], f"src_mask of {name}")
    hidden = call.run(subject, {"src": SRC}, src_mask=ONES.astype(bool))["output"]
    same(hidden, np.full((N, S, E), np.nan), "src_mask of bool ones")


@clause("DOC-A10")
def test_a_decoder_layer_with_four_masks(subject):
    inputs = {"tgt": TGT, "memory": SRC}
    got = run(subject, DECODER, inputs, **four_masks(subject))["output"]
    assert np.isfinite(got).all(), "DOC-A10: NaN in the decoder layer's output"
    exact, naive = (y["output"] for y in DECODER.expected(inputs, **SEEN))
    compare(got, exact, naive, "output")
    for n, length in enumerate(LENGTHS):
        first = np.broadcast_to(got[n, length], got[n, length:].shape)
        compare(got[n, length:], first, naive[n, length:], f"padded rows of sample {n}")
        assert abs(got[n, length]).max() > 1e-3, f"DOC-A10: row {length} of sample {n} is 0"


@clause("DOC-A11")
def test_the_tables_masks_in_a_whole_model(subject):
    inputs = {"src": SRC, "tgt": TGT}
    masks = four_masks(subject) | {"src_mask": ZEROS, "src_key_padding_mask": SOURCE_HIDDEN}
    got = run(subject, WHOLE, inputs, need_weights=True, **masks)
    exact, naive = WHOLE.expected(inputs, **SEEN)
    for name in exact:
        compare(got[name], exact[name], naive[name], name)
    cross = got["decoder.layers.0.multihead_attn"]
    hidden = ~np.broadcast_to(SEEN["memory"][0], cross.shape)
    same(cross[hidden], np.zeros(hidden.sum()), "weights of the memory's hidden tokens")


@clause("DOC-A12")
def test_a_sample_of_padding_alone_is_nan_in_every_layer(subject):
    hidden = np.array(SOURCE_HIDDEN)
    hidden[2] = True
    call = ModelCase("encoder", GUIDE | {"num_layers": 2})
    found = run(subject, call, {"src": SRC}, src_key_padding_mask=hidden)["output"]
    nan = np.isnan(found)
    same(nan, np.broadcast_to(np.arange(N)[:, None, None] == 2, nan.shape), "where NaN is")


@clause("DOC-A13")
def test_layers_hand_out_their_weights(subject):
    options = {"need_weights": True}
    calls = {
        "encoder": (ENCODER, {"src": SRC}, {"src_key_padding_mask": SOURCE_HIDDEN}),
        "decoder": (DECODER, {"tgt": TGT, "memory": SRC}, four_masks(subject)),
    }
    found = {}
    for name, (call, inputs, masks) in calls.items():
        got = run(subject, call, inputs, **masks, **options)
        _, naive = call.expected(inputs, **SEEN)
        for attention in naive.keys() - {"output"}:
            found[f"{name}'s {attention}"] = got[attention].shape
            ones, sums = np.ones(got[attention].shape[:3]), naive[attention].sum(-1)
            compare(got[attention].sum(-1), ones, sums, f"rows of the {name}'s {attention}")
    wanted = {"encoder's self_attn": (N, 2, S, S), "decoder's self_attn": (N, 2, T, T)}
    wanted |= {"decoder's multihead_attn": (N, 2, T, S)}
    assert found == wanted, f"DOC-A13: {found}"


@clause("DOC-A14")
def test_a_layer_drops_in_training_alone(subject):
    require(subject, "layers")
    config = ENCODER.config | {"dropout": 0.1}
    arguments = ("encoder_layer", config, ENCODER.parameters(), {"src": SRC})
    plain, again = (subject.layer(*arguments, seed=seed)["output"] for seed in (1, 2))
    same(again, plain, "two calls in evaluation")
    first, second = (
        subject.layer(*arguments, training=True, seed=seed)["output"] for seed in (1, 2)
    )
    assert abs(first - second).max() > 1e-3, "DOC-A14: two calls in training are the same"


@clause("DOC-B9")
def test_a_model_is_trained_on_a_target_shifted_by_one(subject):
    """What stands where labels[n] is predicted has seen the target up to n, and not labels[n]."""
    require(subject, "layers")
    target = np.array([[1, 5, 6, 7, 8, 9, 2]])  # <bos> ... <eos>: seven tokens
    given, labels = target[:, :-1], target[:, 1:]
    assert given.shape == labels.shape == (1, 6)
    src = embedded(np.array([[3, 4, 5]]), E)

    def output(tokens):
        return WHOLE.run(subject, {"src": src, "tgt": embedded(tokens, E)}, tgt_mask=causal())

    plain = output(given)["output"]
    for n in range(5):
        changed = np.where(np.arange(6) <= n, given, 11)
        same(output(changed)["output"][:, : n + 1], plain[:, : n + 1], f"predictions up to {n}")


# The experiment of document B: Embedding(10, 8), Transformer(d_model=8) with its defaults

DEFAULT = ModelCase(
    "transformer",
    {"d_model": 8, "nhead": 8, "num_encoder_layers": 6, "num_decoder_layers": 6,
     "dim_feedforward": 2048, "empty_rows": "nan"},
)  # fmt: skip
EMBEDDING = normal(76, 10, 8, dtype_name="float32")
EXPERIMENT = {
    "src": EMBEDDING[np.array([[0, 1, 2, 3, 4]])],
    "tgt": EMBEDDING[np.array([[4, 3, 2, 1, 0]])],
}


@cache
def default_expected() -> tuple[np.ndarray, np.ndarray]:
    exact, naive = DEFAULT.expected(EXPERIMENT, tgt=(np.tri(5, dtype=bool), None))
    return exact["output"], naive["output"]


@clause("DOC-B10")
@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_prefix_gives_the_first_rows_of_the_whole(subject, n):
    mask = subject.look_ahead_mask(n, n)
    exact, naive = default_expected()
    inputs = EXPERIMENT | {"tgt": EXPERIMENT["tgt"][:, :n]}
    got = DEFAULT.run(subject, inputs, tgt_mask=mask)["output"]
    part(got, exact, naive, 0, f"prefix of {n}")


@clause("DOC-B10")
def test_the_cache_gives_the_same_rows_one_by_one(subject):
    require(subject, "cache")
    exact, naive = default_expected()
    arguments = ("transformer", DEFAULT.config, DEFAULT.parameters())
    decoding = subject.decoding(*arguments, capacity=5, src=EXPERIMENT["src"])
    for n in range(5):
        got = decoding.feed(EXPERIMENT["tgt"][:, n : n + 1])
        part(got, exact, naive, n, f"row {n}")


@clause("DOC-B10")
def test_without_the_mask_the_rows_change(subject):
    got = DEFAULT.run(subject, EXPERIMENT)["output"]
    exact, _ = default_expected()
    assert abs(got - exact)[:, 0].max() > 0.01, "DOC-B10: row 0 must change without the mask"


# Generation: "Machine learning is fun" becomes seven characters, then <eos>

PADDING, BOS, EOS = 0, 1, 2
SOURCE_WORDS = np.array([[3, 4, 5, 6]])
SPOKEN = np.array([[3 + i for i in range(len(SENTENCE))]])
SPEAKER = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "dropout": 0.1, **DEPTHS,
           "src_vocab": 7, "tgt_vocab": 3 + len(SENTENCE)}  # fmt: skip


@cache
def speaker() -> dict[str, np.ndarray]:
    """Return a model of random layers whose last map is fitted: eight states, eight tokens."""
    parameters = draw(shapes("seq2seq", SPEAKER), 77, "float32")
    eye = np.eye(16, dtype=np.float32)
    states = parameters | {"projection.weight": eye, "projection.bias": np.zeros(16, np.float32)}
    given = {"src": SOURCE_WORDS, "tgt": np.hstack([[[BOS]], SPOKEN])}
    found = reference_layers.run("seq2seq", states, SPEAKER, given, {})["output"][0]
    wanted = 9 * np.eye(SPEAKER["tgt_vocab"])[np.append(SPOKEN, EOS)]  # logits of 9 and 0
    fitted = np.linalg.lstsq(found, wanted, rcond=None)[0].T
    bias = np.zeros(SPEAKER["tgt_vocab"])
    parameters |= {"projection.weight": fitted, "projection.bias": bias}
    return {name: array.astype(np.float32) for name, array in parameters.items()}


@clause("DOC-B11")
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
def test_a_sentence_is_generated_until_its_end(subject, cached):
    require(subject, "cache")
    arguments = (SPEAKER, speaker(), SOURCE_WORDS, np.array([[BOS]]))
    got = subject.greedy(*arguments, eos_idx=EOS, max_new_tokens=10, cached=cached)
    same(got, [[*SPOKEN[0], EOS, PADDING, PADDING]], "tokens of the sentence, then <eos>")
    assert "".join(SENTENCE[token - 3] for token in got[0] if token > EOS) == SENTENCE


@clause("DOC-B12")
@pytest.mark.parametrize("row", [1, 4, 6])
def test_later_rows_cannot_influence_earlier_ones_through_layers(subject, row):
    call = ModelCase("encoder", {"num_layers": 2, "empty_rows": "nan"})
    x = call.inputs()["src"]
    changed = np.array(x)
    changed[:, row:] += 1
    before, after = (call.run(subject, {"src": y}, mask=causal())["output"] for y in (x, changed))
    same(after[:, :row], before[:, :row], f"rows before {row}")
    assert abs(after - before)[:, row:].max() > 0.1, "DOC-B12: nothing was changed"
