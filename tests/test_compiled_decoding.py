"""TRF-1, CACHE-4: a compiled `decode` is one graph for all lengths, and gives what eager does."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from attn_torch import (
    KVCache,
    MultiHeadAttention,
    QKNorm,
    Seq2SeqTransformer,
    StackCache,
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    causal,
    padding,
    rotary,
    sliding_window,
)

SIZES = (16, 4, 24)
STEPS = 20


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def compiled(function):
    counting = CompileCounter()
    return torch.compile(function, backend=counting, fullgraph=True), counting


def model(make, *sizes, **options):
    torch.manual_seed(0)
    return make(*sizes, **options).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_case(**options):
    attn = model(MultiHeadAttention, 16, 4, **options)
    return attn.decode, lambda: attn.new_cache(3, STEPS + 5), ()


def layer_case(**options):
    layer = model(TransformerEncoderLayer, *SIZES, **options)
    return layer.decode, lambda: layer.self_attn.new_cache(3, STEPS + 5), ()


def decoder_layer_case():
    layer = model(TransformerDecoderLayer, *SIZES)
    with torch.no_grad():
        memory = layer.multihead_attn.project(tokens(3, 7, 16, seed=5))
    return layer.decode, lambda: layer.self_attn.new_cache(3, STEPS + 5), (memory,)


def encoder_case():
    encoder = model(TransformerEncoder, 2, *SIZES, norm=True)
    return encoder.decode, lambda: encoder.start(3, STEPS + 5), ()


def decoder_case():
    decoder, memory = model(TransformerDecoder, 2, *SIZES), tokens(3, 7, 16, seed=5)
    mask = padding([7, 2, 5])
    start = lambda: decoder.start(memory, STEPS + 5, memory_key_padding_mask=mask)  # noqa: E731
    return decoder.decode, start, ()


def transformer_case():
    net = model(Transformer, 16, 4, 1, 2, 24, norm_first=True)
    return net.decode, lambda: net.start(tokens(3, 7, 16, seed=5), STEPS + 5), ()


CASES = {
    "attention": attention_case,
    "grouped": lambda: attention_case(num_kv_heads=1),
    "processed": lambda: attention_case(process_heads=QKNorm(4, rotary(base=99.0))),
    "uniform": lambda: attention_case(empty_rows="uniform"),
    "layer": layer_case,
    "norm first": lambda: layer_case(norm_first=True),
    "decoder layer": decoder_layer_case,
    "encoder": encoder_case,
    "decoder": decoder_case,
    "transformer": transformer_case,
}


def check(got, expected) -> None:
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5, equal_nan=True)


def part_of(cache) -> KVCache:
    return cache.layers[-1] if isinstance(cache, StackCache) else cache


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ragged", [False, True])
def test_steps_are_one_graph(name, ragged):
    decode, start, memory = CASES[name]()
    step, counting = compiled(decode)
    x, hidden = tokens(3, STEPS + 5, 16), None
    if ragged:
        hidden = torch.tensor([[False] * 5, [True, False] * 2 + [True], [True] * 5])
    ours, theirs = start(), start()
    _, ours = decode(x[:, :5], ours, *memory, hidden=hidden)
    _, theirs = decode(x[:, :5], theirs, *memory, hidden=hidden)
    counts = []
    for i in range(5, STEPS + 5):
        got, ours = step(x[:, i : i + 1], ours, *memory)
        expected, theirs = decode(x[:, i : i + 1], theirs, *memory)
        check(got, expected)
        assert torch.equal(ours.lengths, theirs.lengths)
        counts.append(counting.frame_count)
    assert counts == [1] * STEPS
    mine, other = part_of(ours), part_of(theirs)
    for b, length in enumerate(ours.lengths.tolist()):
        check(mine.key[b, :, :length], other.key[b, :, :length])
        check(mine.value[b, :, :length], other.value[b, :, :length])
        assert not mine.key[b, :, length:].any()


@pytest.mark.parametrize("name", CASES)
def test_hidden_tokens_are_one_graph(name):
    decode, start, memory = CASES[name]()
    step, counting = compiled(decode)
    ours, theirs = start(), start()
    for i in range(5):
        x = tokens(3, 3, 16, seed=i)
        hidden = torch.rand(3, 3, generator=torch.Generator().manual_seed(i)) < 0.5
        hidden[i % 3] = True
        x[hidden] = torch.nan
        got, ours = step(x, ours, *memory, hidden=hidden)
        expected, theirs = decode(x, theirs, *memory, hidden=hidden)
        check(got, expected)
        assert not got[hidden].any()
        assert torch.equal(ours.lengths, theirs.lengths)
    assert counting.frame_count == 1


@pytest.mark.parametrize("mask", [sliding_window(3), causal() & ~sliding_window(2)])
@pytest.mark.parametrize("empty_rows", ["zero", "nan", "uniform"])
def test_masks_are_one_graph(mask, empty_rows):
    decode, start, _ = attention_case(empty_rows=empty_rows)
    step, counting = compiled(lambda x, cache: decode(x, cache, attn_mask=mask))
    ours, theirs = start(), start()
    for i in range(7):
        x = tokens(3, 2, 16, seed=i)
        got, ours = step(x, ours)
        expected, theirs = decode(x, theirs, attn_mask=mask)
        check(got, expected)
    assert counting.frame_count == 1


def test_tokens_are_one_graph():
    net = model(Seq2SeqTransformer, 11, 13, d_model=16, nhead=2, num_encoder_layers=1)
    step, counting = compiled(net.decode)
    src = torch.tensor([[5, 3, 4], [7, 0, 0]])
    ours, theirs = net.start(src, 20), net.start(src, 20)
    for i in range(20):
        new = torch.tensor([[1 + i % 12], [i % 3]])
        got, ours = step(new, ours)
        expected, theirs = net.decode(new, theirs)
        check(got, expected)
    assert counting.frame_count == 1
    assert ours.lengths.tolist() == [20, 13]


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("mask", [None, sliding_window(9)])
def test_nothing_is_written_beyond_the_capacity(steps, mask):
    attn = model(MultiHeadAttention, 16, 4)
    step, counting = compiled(lambda x, cache: attn.decode(x, cache, attn_mask=mask))
    hidden = torch.tensor([[False] * 4, [True] * 3 + [False], [True] * 4])
    _, cache = attn.decode(tokens(3, 4, 16), attn.new_cache(3, 7), hidden=hidden)
    room, alone = 7 - cache.lengths, cache.copy()
    for i in range(4):
        x, before = tokens(3, steps, 16, seed=i + 1), cache.key.clone()
        got, cache = step(x, cache)
        room = room - steps
        for b in range(3):
            assert got[b].isnan().all() == (room[b] < 0)
            if room[b] >= 0:  # as alone
                one = KVCache(
                    alone.key[b : b + 1], alone.value[b : b + 1], alone.lengths[b : b + 1]
                )
                check(got[b : b + 1], attn.decode(x[b : b + 1], one, attn_mask=mask)[0])
                alone.lengths[b] += steps
            kept = min(int(cache.lengths[b]) - steps, 7)
            assert torch.equal(cache.key[b, :, :kept], before[b, :, :kept])
    assert counting.frame_count == 1
    assert cache.lengths.tolist() == [4 + 4 * steps, 1 + 4 * steps, 4 * steps]
    if (cache.lengths > 7).any():
        with pytest.raises(ValueError, match="capacity must hold every token"):
            attn.decode(x, cache)


def test_what_is_not_finite_is_seen_in_the_graph():
    for name in ("q_proj", "k_proj", "v_proj"):
        attn = model(MultiHeadAttention, 16, 4)
        with torch.no_grad():
            getattr(attn, name).bias[3] = -torch.inf
        step, _ = compiled(attn.decode)
        ours, theirs = attn.new_cache(2, 20), attn.new_cache(2, 20)
        for i in range(18):
            x = tokens(2, 1, 16, seed=i)
            got, ours = step(x, ours)
            expected, theirs = attn.decode(x, theirs)
            check(got, expected)
            assert got.isnan().all()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_is_in_the_graph(low):
    encoder = model(TransformerEncoder, 2, *SIZES)
    step, counting = compiled(encoder.decode)
    with torch.autocast("cpu", low):
        ours, theirs = encoder.start(2, 9), encoder.start(2, 9)
        for i in range(9):
            x = tokens(2, 1, 16, seed=i)
            got, ours = step(x, ours)
            expected, theirs = encoder.decode(x, theirs)
            spread = 16 * torch.finfo(low).eps  # roundings of 16 bits, in another order
            torch.testing.assert_close(got, expected, atol=spread, rtol=spread)
    assert counting.frame_count == 1


@pytest.mark.parametrize("counts", [None, [0, 1, 3], [3, 3, 3], [0, 0, 0]])
def test_append_by_index_is_append(counts):
    key, value = tokens(3, 2, 3, 4), tokens(3, 2, 3, 4, seed=1)
    counts = None if counts is None else torch.tensor(counts)
    step, counting = compiled(lambda cache, key, value, counts: cache.append(key, value, counts))
    ours, theirs = (
        KVCache(torch.ones(3, 2, 7, 4), torch.ones(3, 2, 7, 4), torch.tensor([0, 2, 4]))
        for _ in range(2)
    )
    ours, theirs = step(ours, key, value, counts), theirs.append(key, value, counts)
    assert torch.equal(ours.key, theirs.key)
    assert torch.equal(ours.value, theirs.value)
    assert torch.equal(ours.lengths, theirs.lengths)
    assert counting.frame_count == 1


@pytest.mark.parametrize("counts", [[-1, 1, 4], [5, -7, 3]])
def test_wrong_counts_are_seen_later(counts):
    key = tokens(3, 2, 3, 4)
    step, _ = compiled(lambda cache, key, counts: cache.append(key, key, counts))
    with pytest.raises(ValueError, match="counts must lie in"):
        KVCache.empty(3, 2, 7, 4).append(key, key, torch.tensor(counts))
    cache = step(KVCache.empty(3, 2, 7, 4), key, torch.tensor(counts))
    wrong = [not 0 <= count <= 3 for count in counts]
    assert [length == 8 for length in cache.lengths.tolist()] == wrong


def test_wrong_truncation_and_order_are_seen_later():
    full = KVCache.empty(3, 2, 7, 4).append(tokens(3, 2, 3, 4), tokens(3, 2, 3, 4, seed=1))
    step, counting = compiled(lambda cache, lengths: cache.truncate(lengths))
    assert step(full.copy(), torch.tensor([0, 2, 3])).lengths.tolist() == [0, 2, 3]
    assert step(full.copy(), torch.tensor([-1, 2, 4])).lengths.tolist() == [8, 2, 8]
    step, more = compiled(lambda cache, index: cache.reorder(index))
    got = step(full, torch.tensor([2, 2, 1, 0]))
    assert torch.equal(got.key, full.key[[2, 2, 1, 0]])
    assert got.lengths.tolist() == [3] * 4
    assert step(full, torch.tensor([2, -1, 1, 0])).lengths.tolist() == [3, 8, 3, 3]
    assert counting.frame_count == more.frame_count == 1
