"""The chapter on the cache, second part: samples at lengths of their own, through every change."""

from functools import cache

import numpy as np
import pytest

from .cases.decoding import SOURCE_HIDDEN, STREAMS, B, N, Stream, part
from .cases.models import ModelCase, draw, shapes
from .cases.told import Told
from .contract import clause
from .oracle import expected, reference_layers
from .oracle.tolerance import same
from .subjects.protocol import require
from .test_cache import RAGGED, STACKS, check_full

MOST = ["grouped", "encoder", "decoder_layer", "seq2seq"]
ENDED = np.array([[0, 1], [0, 0], [1, 0]], bool)


def ragged(subject, stream: Stream, capacity: int = N + 2) -> Told:
    """Return a decoding of samples at lengths 3, 1 and 4."""
    told = Told(stream, stream.start(subject, capacity), range(B))
    told.feed(stream.tokens(length=N + 2)[:, :4], "a ragged prompt", RAGGED["right"])
    return told


@clause("CACHE-6")
@pytest.mark.parametrize("name", ["attention", *MOST, "decoder"])
def test_samples_at_unequal_lengths_are_reordered(subject, name):
    stream = STREAMS[name]
    x, told = stream.tokens(length=N + 2), ragged(subject, stream)
    beams = told.reorder([2, 0, 2])
    beams.feed(x[::-1, 4:5], "a step of the beams")
    again = beams.reorder([1, 2, 0])
    again.feed(x[:, 5:7], "a ragged chunk", ENDED)
    told.feed(x[:, 4:5], "a step of what was reordered")  # it stands on its own
    again.check("outputs of the beams")
    told.check("outputs of what was reordered")


@clause("CACHE-6")
@pytest.mark.parametrize("name", MOST)
def test_samples_at_unequal_lengths_are_truncated_to_others(subject, name):
    stream = STREAMS[name]
    x, told = stream.tokens(length=N + 2), ragged(subject, stream)
    shorter = told.truncate([2, 1, 0])
    shorter.feed(x[::-1, 4:6], "a ragged chunk", ENDED)
    shorter.feed(x[:, 6:7], "a step")
    shorter = shorter.truncate(shorter.counts)  # nothing is forgotten
    shorter.feed(x[:, 7:8], "a step after it")
    shorter.check("outputs of what is shorter")


@clause("CACHE-4")
@pytest.mark.parametrize("name", MOST)
def test_a_ragged_copy_and_what_it_is_of_take_other_tokens(subject, name):
    stream = STREAMS[name]
    x, told = stream.tokens(length=N + 2), ragged(subject, stream)
    branch = told.copy()
    told.feed(x[:, 4:6], "a chunk of the first", ENDED)
    branch.feed(x[::-1, 4:6], "a chunk of the copy", ~ENDED)
    told.feed(x[:, 6:7], "a step of the first")
    branch.feed(x[::-1, 6:7], "a step of the copy")
    told.check("outputs of the first")
    branch.check("outputs of the copy")


@clause("CACHE-4")
@pytest.mark.untyped
@pytest.mark.parametrize("name", STACKS)
def test_one_full_sample_refuses_for_all_and_the_others_go_on(subject, name):
    stream = STREAMS[name]
    x, told = stream.tokens(length=N + 2), ragged(subject, stream, 5)
    told.feed(x[:, 4:6], "a chunk that fills sample 2", ENDED)
    same(told.counts, [4, 3, 5], "what was told")

    def full():
        stream.feed(told.decoding, x[:, 6:7])

    check_full(subject, full, "6 tokens for 5 slots")
    told.check_lengths("the refusal")
    told.feed(x[:, 6:7], "a step without sample 2", np.array([[0], [0], [1]], bool))
    told.feed(x[:, 7:8], "a step of sample 1 alone", np.array([[1], [0], [1]], bool))
    told.check("outputs of all samples")
    if stream.kind == "attention":
        check_look(told, x[:, :2], [])


@clause("CACHE-4")
@pytest.mark.parametrize("name", ["attention", "grouped", "encoder"])
def test_one_sample_beyond_its_capacity_is_nan_and_the_others_are_not(subject, name):
    """The prompt is ragged and each step is compiled: at first the longest sample overruns."""
    require(subject, "cache", "traced")
    stream = STREAMS[name]
    x, told = stream.tokens(length=N + 2), ragged(subject, stream, 5)
    told.decoding.compiled = True
    for t, over in ((4, []), (5, [2]), (6, [0, 2])):
        counts = told.counts
        got = told.decoding.feed(x[:, t : t + 1])
        for b in range(B):
            told.told[b] = np.concatenate([told.told[b], x[b, t : t + 1]])
            if b in over:
                same(got[b], np.full(got[b].shape, np.nan), f"token {t} of sample {b}, full")
            else:
                wanted = stream.one_pass(told.told[b][None], rows=slice(b, b + 1))
                part(got[b : b + 1], *wanted, counts[b], f"token {t} of sample {b}")
    if stream.kind == "attention":
        check_look(told, x[:, :2], over)


def check_look(told: Told, query: np.ndarray, over: list[int]) -> None:
    """Look at a cache: output and weights, and NaN where one with traced lengths overran."""
    stream, (output, weights) = told.stream, told.decoding.look(query)
    heads = stream._head_counts()
    for b, own in enumerate(told.told):
        if b in over:
            same(output[b], np.full(output[b].shape, np.nan), f"output of sample {b}, overrun")
            same(weights[b], np.full(weights[b].shape, np.nan), f"weights of sample {b}, overrun")
            continue
        allowed = np.ones((1, heads[0], query.shape[1], len(own)), bool)
        given = (query[b : b + 1], own[None], own[None])
        exact, naive = expected.multihead(stream.parameters(), *heads, *given, allowed=allowed)
        part(output[b : b + 1], exact["output"], naive["output"], 0, f"look of sample {b}")
        written = weights[b : b + 1, ..., : len(own)]
        part(written, exact["weights"], naive["weights"], 0, f"weights of sample {b}")
        rest = weights[b, ..., len(own) :]
        same(rest, np.zeros_like(rest), f"weights of sample {b} where nothing is written")


@clause("CACHE-1")
@pytest.mark.parametrize("name", ["attention", "encoder_layer", "decoder_layer"])
def test_one_sample_with_the_sequence_first_is_decoded(subject, name):
    plain = STREAMS[name]
    stream = Stream(name, plain.changes | {"batch_first": False})
    require(subject, "cache", "sequence_first")
    x, given = plain.tokens()[1:2], plain.given()
    given = {"batch_size": 1} if "batch_size" in given else {"memory": given["memory"][1:2]}
    if "memory" in given:
        given["memory"] = given["memory"].swapaxes(0, 1)
    decoding = subject.decoding(
        stream.kind, stream.config, stream.parameters(), capacity=N, **given
    )
    masks = {"memory_key_padding_mask": SOURCE_HIDDEN[1:2]} if plain.every_feed else {}
    hidden = np.array([[1, 0, 1, 0]], bool)
    got = decoding.feed(x[:, :4].swapaxes(0, 1), hidden=hidden, **masks).swapaxes(0, 1)
    told = np.concatenate([x[:, :4][~hidden][None], x[:, 4:]], 1)
    wanted = plain.one_pass(told, rows=slice(1, 2))
    part(got[~hidden][None], *wanted, 0, "a ragged prompt")
    same(got[hidden], np.zeros_like(got[hidden]), "hidden tokens")
    got = decoding.feed(x[:, 4:].swapaxes(0, 1), **masks).swapaxes(0, 1)
    part(got, *wanted, 2, "the tokens after it")
    same(decoding.lengths, [5], "lengths")


# Greedy decoding of a model whose next token follows from the last one alone

PADDING, EOS, VOCAB = 3, 9, 13
CHAIN = {"positions": "none", "padding_idx": PADDING, "tgt_vocab": VOCAB, "norm_first": True}
CHAIN |= {"num_encoder_layers": 1, "num_decoder_layers": 2}
NEXT = {1: 2, 2: 4, 4: EOS, 5: EOS, 6: 7, 7: 8, 8: 6, 10: 11, 11: 12, 12: 10, 0: 1, 3: 5, EOS: 6}
CHAINED = {
    "right": np.array([[10, 1, 3, 3], [2, 6, 5, 3], [7, 3, 3, 3]]),
    "left": np.array([[3, 3, 10, 1], [3, 2, 6, 5], [3, 3, 3, 7]]),
    "between": np.array([[10, 3, 1, 3], [2, 6, 3, 5], [3, 7, 3, 3]]),
}
FOUND = np.array([[2, 4, EOS, 3, 3], [EOS, 3, 3, 3, 3], [8, 6, 7, 8, 6]])


@cache
def chain() -> tuple[ModelCase, dict[str, np.ndarray]]:
    """Return a model whose sublayers give 0 and whose last map is fitted to NEXT.

    Padding has the largest logit of all, the next token the second largest.
    """
    case = ModelCase("seq2seq", CHAIN)
    parameters = draw(shapes("seq2seq", case.config), 78, "float32")
    for name, array in parameters.items():
        if "out_proj" in name or "linear2" in name:
            array[...] = 0
    eye = np.eye(14, dtype=np.float32)
    states = parameters | {"projection.weight": eye, "projection.bias": np.zeros(14, np.float32)}
    tokens = np.array([[token] for token in NEXT])
    given = {"src": np.ones_like(tokens), "tgt": tokens}
    found = reference_layers.run("seq2seq", states, case.config, given, {})["output"][:, 0]
    wanted = 9 * np.eye(VOCAB)[list(NEXT.values())]
    fitted = np.linalg.lstsq(found, wanted, rcond=None)[0].T
    bias = np.where(np.arange(VOCAB) == PADDING, 30, 0)
    parameters |= {"projection.weight": fitted, "projection.bias": bias}
    return case, {name: array.astype(np.float32) for name, array in parameters.items()}


SRC = np.array([[1, 5, 3, 3, 3], [3, 3, 3, 3, 4], [2, 6, 7, 8, 16]])


def greedy(subject, parameters: dict, prompt: np.ndarray, **options) -> np.ndarray:
    require(subject, "cache")
    return subject.greedy(chain()[0].config, parameters, SRC, prompt, eos_idx=EOS, **options)


@clause("CACHE-10")
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
@pytest.mark.parametrize("side", CHAINED)
def test_each_sample_ends_at_a_step_of_its_own_and_padding_is_never_chosen(subject, side, cached):
    options = {"max_new_tokens": 5, "cached": cached}
    got = greedy(subject, chain()[1], CHAINED[side], **options)
    same(got, FOUND, "tokens, padding after the end")


@clause("CACHE-10")
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
def test_the_first_of_the_likeliest_tokens_is_taken(subject, cached):
    """All logits are biases, so that they are equal bit for bit; padding is larger than both."""
    parameters = dict(chain()[1])
    parameters["projection.weight"] = np.zeros_like(parameters["projection.weight"])
    bias = np.zeros(VOCAB, np.float32)
    bias[[11, 7, PADDING]] = 1.5, 1.5, 2
    got = greedy(
        subject, parameters | {"projection.bias": bias}, CHAINED["left"], max_new_tokens=2,
        cached=cached,
    )  # fmt: skip
    same(got, np.full((B, 2), 7), "the first of two equal logits")


@clause("CACHE-10")
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "again"])
def test_decoding_stops_when_every_sample_has_ended_or_at_the_last_token(subject, cached):
    prompt = np.array([[10, 1], [3, 4], [5, 3]])
    got = greedy(subject, chain()[1], prompt, max_new_tokens=5, cached=cached, capacity=6)
    same(got, [[2, 4, EOS, 3, 3], [EOS, 3, 3, 3, 3], [EOS, 3, 3, 3, 3]], "all end")
    got = greedy(subject, chain()[1], prompt, max_new_tokens=1, cached=cached, capacity=2)
    same(got, [[2], [EOS], [EOS]], "one new token")
