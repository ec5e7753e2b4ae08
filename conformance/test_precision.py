"""The chapter on automatic mixed precision: what the explicit casts give."""

import numpy as np
import pytest

from .cases import multihead
from .cases.attention import BY_NAME, LENGTHS
from .cases.compare import check_gradients, check_output
from .cases.decoding import STREAMS, B, N, Stream
from .cases.models import ModelCase
from .cases.transforms import OTHERS
from .contract import clause
from .mask_spec import causal, padding
from .oracle import reference
from .oracle.tolerance import check_dtype, compare
from .oracle.tolerance import dtype as numpy_dtype
from .subjects.protocol import require

pytestmark = pytest.mark.untyped
DTYPES = ["bfloat16", "float16"]
MIXES = {
    "keys": ("float32", "half", "half"),
    "query": ("half", "float32", "float32"),
    "value": ("float32", "float32", "half"),
}
HIDDEN = np.arange(7) >= np.array(LENGTHS)[:, None]
CASES = [BY_NAME["causal_and_padding"], BY_NAME["predicate"], OTHERS[3]]


def cast(arrays, dtypes, half: str) -> list[np.ndarray]:
    names = [half if name == "half" else name for name in dtypes]
    return [x.astype(numpy_dtype(name)) for x, name in zip(arrays, names, strict=True)]


@clause("TRF-5")
@pytest.mark.parametrize("half", DTYPES)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_attention_of_mixed_dtypes_is_that_of_the_casts(subject, case, mix, half):
    require(subject, "autocast", "attention")
    inputs = cast(case.inputs("float32"), MIXES[mix], half)
    options = case.options("float32")
    with subject.autocast(half):
        got = subject.attention(*inputs, **options)
    check_dtype(got, numpy_dtype(half), "output")
    own = [x.astype(numpy_dtype(half)) for x in inputs]
    numbers = case.numbers("float32")
    if "bias" in numbers:
        numbers["bias"] = numbers["bias"].astype(numpy_dtype(half))
    check_output(got, *own, "output", allowed=case.allowed(), **numbers)


@clause("TRF-5")
@pytest.mark.parametrize("half", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_gradients_in_one_dtype_are_not_cast(subject, case, half):
    """Not where the backward pass runs under autocast, either."""
    require(subject, "autocast", "gradients")
    with subject.autocast(half):
        check_gradients(subject, case)


@clause("TRF-5")
@pytest.mark.parametrize("half", DTYPES)
@pytest.mark.parametrize("dtype", ["float32", "half"])
@pytest.mark.parametrize("name", ["CROSS", "GROUPED"])
def test_a_module_is_that_of_the_casts(subject, name, dtype, half):
    require(subject, "autocast", "multihead")
    call = getattr(multihead, name)
    parameters = call.parameters("float32")
    inputs = cast(call.inputs(), [dtype] * 3, half)
    with subject.autocast(half):
        got, _ = subject.multihead(
            call.config, parameters, *inputs, key_padding_mask=HIDDEN, need_weights=False
        )
    check_dtype(got, numpy_dtype(half), "output")
    allowed = np.broadcast_to(~HIDDEN[:, None, None], (3, call.heads[0], 5, 7))
    exact, naive = call.expected(allowed, dtype_name=half)
    compare(got, exact["output"], naive["output"], "output")


def within_half(got, exact, parameters: dict, run, half: str, what: str) -> None:
    """Check an answer within the budget of the same formula in 16 bits, its dtype aside.

    Norms and residuals keep the precision that they like; no step may be coarser than 16 bits.
    """
    rounded = {name: x.astype(numpy_dtype(half)) for name, x in parameters.items()}
    naive = run(rounded)[1]
    compare(np.asarray(got).astype(np.float32), exact, naive.astype(np.float32), what)


@clause("TRF-5")
@pytest.mark.parametrize("half", DTYPES)
@pytest.mark.parametrize("dtype", ["float32", "half"])
@pytest.mark.parametrize("name", ["encoder_layer", "decoder_layer", "encoder", "transformer"])
def test_a_model_is_that_of_the_casts(subject, name, dtype, half):
    require(subject, "autocast", "layers")
    case = ModelCase(name)
    parameters, inputs = case.parameters(), case.inputs()
    own = {n: cast([x], [dtype], half)[0] for n, x in inputs.items()}
    option = {"encoder": "src", "decoder": "memory", "transformer": "src"}[name.split("_")[0]]
    masks = {option: (~HIDDEN[:, None, None], None)}
    with subject.autocast(half):
        got = subject.layer(name, case.config, parameters, own,
                            **{f"{option}_key_padding_mask": HIDDEN})["output"]  # fmt: skip

    def run(rounded: dict):
        halves = {n: x.astype(numpy_dtype(half)) for n, x in inputs.items()}
        exact, naive = case.expected(halves, rounded, **masks)
        return exact["output"], naive["output"]

    exact, _ = case.expected(inputs, parameters, **masks)
    within_half(got, exact["output"], parameters, run, half, "output")


DECODING = ["attention", "encoder_layer", "encoder", "decoder"]


@clause("TRF-5")
@pytest.mark.parametrize("half", DTYPES)
@pytest.mark.parametrize("dtype", ["float32", "half"])
@pytest.mark.parametrize("name", DECODING)
def test_decoding_is_that_of_the_casts(subject, name, dtype, half):
    """Caches are made inside; a prompt, then token by token."""
    require(subject, "autocast")
    stream: Stream = STREAMS[name]
    x = stream.tokens()
    (own,) = cast([x], [dtype], half)
    with subject.autocast(half):
        decoding, pieces = stream.start(subject), []
        for first, last in ((0, 3), (3, 4), (4, 5), (5, 7)):
            pieces.append(stream.feed(decoding, own[:, first:last]).astype(np.float32))
    exact, _ = stream.whole()
    naive = stream.whole(half)[1]
    compare(np.concatenate(pieces, 1), exact, naive.astype(np.float32), "decoded outputs")


@clause("TRF-5")
@pytest.mark.parametrize("half", DTYPES)
def test_decoding_in_float64_is_not_cast(subject, half):
    """As no other call of that precision is."""
    require(subject, "autocast")
    stream = STREAMS["attention"]
    with subject.autocast(half):
        decoding = stream.start(subject, dtype_name="float64")
        stream.check_feeds(decoding, stream.tokens("float64"), (3, 4, N), *stream.whole("float64"))


@clause("TRF-5")
def test_greedy_decoding_gives_tokens(subject):
    """Where the likeliest token is clear in 16 bits, it is the same one."""
    require(subject, "autocast", "cache")
    stream = STREAMS["seq2seq"]
    source = stream.given()["src"]
    prompt = np.array([[1]] * B)
    with subject.autocast("bfloat16"):
        got = subject.greedy(stream.config, stream.parameters(), source, prompt,
                             eos_idx=2, max_new_tokens=1)  # fmt: skip
    exact, _ = stream.one_pass(prompt)
    _, naive = stream_in_half(stream, prompt)
    logits, rounding = exact[:, -1], 2 * abs(naive - exact).max()
    clear = np.sort(logits)[:, -1] - np.sort(logits)[:, -2] > 2 * rounding
    assert clear.any(), "TRF-5: no sample has a clear successor"
    wrong = clear & (got[:, 0] != logits.argmax(-1))
    assert not wrong.any(), f"TRF-5: expected {logits.argmax(-1)}, got {got[:, 0]}"


def stream_in_half(stream: Stream, tokens: np.ndarray):
    """Return the logits of a pass, exact and in bfloat16."""
    own = {n: x.astype(numpy_dtype("bfloat16")) for n, x in stream.parameters().items()}
    inputs = {"src": stream.given()["src"], "tgt": tokens}
    exact, naive = ModelCase(stream.kind, stream.changes).expected(inputs, own)
    return exact["output"], naive["output"].astype(np.float32)


@clause("TRF-5")
@pytest.mark.parametrize("half", DTYPES)
def test_masks_and_policies_hold(subject, half):
    require(subject, "autocast", "attention", "empty_rows")
    case = BY_NAME["padding"]
    query, key, value = cast(case.inputs("float32"), MIXES["keys"], half)
    dirty = np.array(value.astype(np.float32))
    dirty.swapaxes(1, 2)[HIDDEN] = np.nan
    allowed = reference.allowed(padding(LENGTHS) & causal(), (3, 2, 5, 7), 2)
    own = [x.astype(numpy_dtype(half)) for x in (query, key, value)]
    for policy in ("zero", "uniform"):
        with subject.autocast(half):
            got = subject.attention(
                query, key, dirty if policy == "zero" else value,
                mask=padding(LENGTHS) & causal(), query_offset=2, empty_rows=policy,
            )  # fmt: skip
        check_output(got, *own, f"output under {policy}", allowed=allowed, empty_rows=policy)
