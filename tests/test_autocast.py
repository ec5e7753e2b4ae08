"""TRF-5: under autocast whatever a linear map gives is taken, as if its casts were written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import attn_torch
from attn_torch import (
    KVCache,
    MultiHeadAttention,
    Seq2SeqTransformer,
    Transformer,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    attention,
    attention_steps,
    causal,
    greedy_decode,
    padding,
    sliding_window,
)

LOW = [torch.bfloat16, torch.float16]
FLOATS = [torch.bfloat16, torch.float16, torch.float32]
HIDDEN = torch.tensor([[False] * 7, [True] * 2 + [False] * 3 + [True] * 2])


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(make, *sizes, **options):
    torch.manual_seed(0)
    return make(*sizes, **options).eval()


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("mask", [None, causal(), sliding_window(1) & padding([3, 0])])
@pytest.mark.parametrize("given", [(0, 2, 2), (2, 0, 1), (1, 1, 2), (0, 1, 2)])
def test_mixed_inputs_are_those_that_are_cast(low, mask, given):
    q, k, v = (
        tokens(2, heads, 5, 8, seed=i).to(FLOATS[dtype])
        for i, (heads, dtype) in enumerate(zip((4, 2, 2), given, strict=True))
    )
    expected = attention_steps(q.to(low), k.to(low), v.to(low), mask=mask)
    with torch.autocast("cpu", low):
        got = attention(q, k, v, mask=mask)
        steps = attention_steps(q, k, v, mask=mask)
    assert got.dtype == low
    assert torch.equal(got, attention(q.to(low), k.to(low), v.to(low), mask=mask))
    assert all(torch.equal(a, b) for a, b in zip(steps, expected, strict=True))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_equal_inputs_stay_as_they_are(dtype):
    q, k, v = (tokens(1, 2, 3, 4, seed=i).to(dtype) for i in range(3))
    expected = attention(q, k, v, mask=causal())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(q, k, v, mask=causal()), expected)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("mask", [None, padding([3, 5])])
def test_bias_of_a_linear_map_is_taken(low, mask):
    q, bias = tokens(2, 2, 5, 4), tokens(2, 5, 5, seed=1).to(low)
    expected = attention(q, q, q, bias=bias.float()[:, None], mask=mask)
    with torch.autocast("cpu", low):
        got = attention(q, q, q, bias=bias[:, None], mask=mask)
    torch.testing.assert_close(got, expected)
    attn = model(MultiHeadAttention, 8, 2)
    x = tokens(1, 5, 8)
    with torch.autocast("cpu", low):
        got, weights = attn(x, attn_mask=bias[0])
        expected, theirs = attn(x, attn_mask=bias[0].float())
    assert torch.equal(got, expected)
    assert torch.equal(weights, theirs)


def test_mixed_inputs_are_refused_elsewhere():
    q = tokens(1, 2, 3, 4)
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False)):
        with context, pytest.raises(TypeError, match="must share a dtype: got float32, bfloat16"):
            attention(q, q.bfloat16(), q)
    with torch.autocast("cpu", torch.bfloat16):
        for wide in ((q.double(), q, q), (q, q, q.double())):
            with pytest.raises(TypeError, match="must share a dtype"):
                attention(*wide)
        attn = model(MultiHeadAttention, 8, 2)
        with pytest.raises(TypeError, match="dtype of the weights, float32: got float64"):
            attn(tokens(1, 3, 8).double())
    with pytest.raises(TypeError, match="dtype of the weights, float32: got bfloat16"):
        attn(tokens(1, 3, 8).bfloat16())
    with pytest.raises(TypeError, match="dtype of the weights, float32: got bfloat16"):
        attn.decode(tokens(1, 3, 8).bfloat16(), attn.new_cache(1, 3))
    cache = attn.new_cache(1, 3)
    with pytest.raises(TypeError, match="dtype of the cache, float32: got bfloat16"):
        cache.append(cache.key.bfloat16(), cache.value.bfloat16())


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}, {"batch_first": False}])
def test_attention_module_is_that_of_cast_weights(low, need_weights, options):
    attn = model(MultiHeadAttention, 16, 4, **options)
    cast = model(MultiHeadAttention, 16, 4, **options).to(low)
    x, memory = (tokens(2, 2, 16, seed=i).bfloat16().float() for i in range(2))  # exact in all
    expected = cast(x.to(low), memory.to(low), need_weights=need_weights)
    for one in FLOATS:
        for other in FLOATS:
            inputs = (x.to(one), memory.to(other), memory)
            with torch.autocast("cpu", low):
                got = attn(*inputs, need_weights=need_weights)
            assert got[0].dtype == low
            assert torch.equal(got[0], expected[0])
            assert not need_weights or torch.equal(got[1], expected[1])


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("made", ["inside", "outside", "other"])
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}])
@pytest.mark.parametrize("hidden", [None, HIDDEN])
@pytest.mark.parametrize("mask", [None, sliding_window(2)])
def test_decoding_is_that_of_cast_weights(low, made, options, hidden, mask):
    attn = model(MultiHeadAttention, 16, 4, **options)
    cast = model(MultiHeadAttention, 16, 4, **options).to(low)
    x, cache = tokens(2, 11, 16), attn.new_cache(2, 13)
    other = next(dtype for dtype in LOW if dtype != low)
    if made == "other":
        sizes = (2, attn.num_kv_heads, 13, attn.head_dim)
        cache = KVCache.empty(*sizes, dtype=other)
    theirs = cast.new_cache(2, 13)
    with torch.autocast("cpu", low):
        if made == "inside":
            cache = attn.new_cache(2, 13)
            assert cache.key.dtype == low
        for part in (slice(0, 7), slice(7, 8), slice(8, 10), slice(10, 11)):
            more = {"hidden": hidden if part.start == 0 else None, "attn_mask": mask}
            got, cache = attn.decode(x[:, part], cache, **more)
            assert got.dtype == low
            expected, theirs = cast.decode(x[:, part].to(low), theirs, **more)
            # A wider cache saves a rounding of the sums; a cache of the other kind costs one more.
            spread = {"inside": 0, "outside": 2, "other": 8}[made] * torch.finfo(low).eps
            spread = max(spread, 4 * torch.finfo(other).eps if made == "other" else 0)
            torch.testing.assert_close(got, expected, atol=spread, rtol=spread)
        with torch.no_grad():
            memory = attn.project(x)
            got = attn(x[:, :3], memory, need_weights=False)[0]
        with torch.no_grad():
            expected = cast(x[:, :3].to(low), x.to(low), need_weights=False)[0]
        assert torch.equal(got, expected)


@pytest.mark.parametrize("low", LOW)
def test_memory_that_was_projected_outside_is_looked_at(low):
    attn = model(MultiHeadAttention, 8, 2)
    x = tokens(2, 3, 8)
    with torch.no_grad():
        memory = attn.project(x)
        query = functional.linear(x.to(low), attn.q_proj.weight.to(low), attn.q_proj.bias.to(low))
        query = query.float().unflatten(2, (2, 4)).transpose(1, 2)
        heads = attention(query, memory.key, memory.value).transpose(1, 2).flatten(2)
        weight, bias = attn.out_proj.weight.to(low), attn.out_proj.bias.to(low)
        expected = functional.linear(heads.to(low), weight, bias)
        with torch.autocast("cpu", low):
            got = attn(x, memory, need_weights=False)[0]
    assert torch.equal(got, expected)


class Written(nn.Module):
    """An encoder layer whose casts are written out."""

    def __init__(self, layer: TransformerEncoderLayer, low: torch.dtype):
        super().__init__()
        self.layer, self.low = layer, low

    def linear(self, x: torch.Tensor, of: nn.Linear) -> torch.Tensor:
        return functional.linear(x.to(self.low), of.weight.to(self.low), of.bias.to(self.low))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attn, layer = self.layer.self_attn, self.layer
        first = layer.norm1(x) if layer.norm_first else x
        heads = [self.linear(first, p) for p in (attn.q_proj, attn.k_proj, attn.v_proj)]
        q, k, v = (h.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for h in heads)
        y = self.linear(attention(q, k, v).transpose(1, 2).flatten(2), attn.out_proj)
        x = x + y if layer.norm_first else layer.norm1(x + y)
        y = layer.norm2(x) if layer.norm_first else x
        y = self.linear(self.linear(y, layer.linear1).relu(), layer.linear2)
        return x + y if layer.norm_first else layer.norm2(x + y)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_layer_is_that_whose_casts_are_written_out(low, norm_first, dtype):
    layer = model(TransformerEncoderLayer, 16, 4, 24, norm_first=norm_first)
    x = tokens(2, 5, 16).to(dtype)
    with torch.autocast("cpu", low):
        got = layer(x)
    assert torch.equal(got, Written(layer, low)(x))


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("norm_first", [False, True])
def test_training_gives_the_gradients_of_the_casts(low, norm_first):
    layer = model(TransformerEncoderLayer, 16, 4, 24, norm_first=norm_first)
    x, before = tokens(2, 37, 16), nn.Linear(16, 16)
    with torch.autocast("cpu", low):
        loss = layer(before(x)).float().square().mean()
    got = torch.autograd.grad(loss, list(layer.parameters()))
    y = functional.linear(x.to(low), before.weight.to(low), before.bias.to(low))
    wanted = torch.autograd.grad(
        Written(layer, low)(y).float().square().mean(), list(layer.parameters())
    )
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=8 * torch.finfo(low).eps)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("mask", [causal(), sliding_window(3) & padding([37, 5])])
def test_every_model_trains(low, mask):
    for net, inputs, options in (
        (model(Transformer, 16, 4, 1, 1, 24).train(), (tokens(2, 7, 16),) * 2, {}),
        (model(MultiHeadAttention, 16, 4).train(), (tokens(2, 37, 16),), {"attn_mask": mask}),
        (model(TransformerDecoderLayer, 16, 4, 24).train(), (tokens(2, 7, 16),) * 2, {}),
    ):
        with torch.autocast("cpu", low):
            output = net(*(nn.Linear(16, 16)(x) for x in inputs), **options)
            loss = (output if isinstance(output, torch.Tensor) else output[0]).float().square()
        loss.mean().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("made", ["inside", "outside"])
def test_models_decode_to_what_one_pass_gives(low, norm_first, made):
    net = model(Transformer, 16, 4, 1, 2, 24, norm_first=norm_first)
    src, tgt = tokens(2, 5, 16), tokens(2, 7, 16, seed=1)
    cache = net.start(src, 7)
    spread = 16 * torch.finfo(low).eps
    with torch.autocast("cpu", low), torch.no_grad():
        one = net(src, tgt, tgt_mask=causal())
        cache = net.start(src, 7) if made == "inside" else cache
        parts = []
        for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
            y, cache = net.decode(tgt[:, part], cache)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1).float(), one.float(), atol=spread, rtol=spread)
    encoder = model(TransformerEncoder, 2, 16, 4, 24, norm_first=norm_first, norm=True)
    with torch.autocast("cpu", low), torch.no_grad():
        x = nn.Linear(16, 16)(tgt)
        one = encoder(x, causal())
        got, _ = encoder.decode(x, encoder.start(2, 7))
    torch.testing.assert_close(got.float(), one.float(), atol=spread, rtol=spread)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("cached", [True, False])
def test_tokens_are_decoded(low, cached):
    sizes = {"d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    net = model(Seq2SeqTransformer, 11, 13, **sizes, dim_feedforward=24)
    src, prompt = torch.tensor([[5, 3, 4], [7, 0, 0]]), torch.tensor([[1, 4], [1, 0]])
    options = {"eos_idx": 2, "max_new_tokens": 5, "cached": cached}
    expected = greedy_decode(net, src, prompt, **options)
    with torch.autocast("cpu", low):
        logits = net(src, prompt)
        got = greedy_decode(net, src, prompt, **options)
    assert logits.dtype == low
    torch.testing.assert_close(logits.float(), net(src, prompt), atol=0.1, rtol=0.1)
    assert torch.equal(got, expected)


def test_a_key_too_large_for_its_cache_is_seen():
    attn = model(MultiHeadAttention, 8, 2)
    x, cache = tokens(1, 3, 8), attn.new_cache(1, 3)
    with torch.no_grad():
        attn.k_proj.bias.fill_(1e6)  # beyond float16, not beyond bfloat16
    small = KVCache.empty(1, 2, 3, 4, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        assert attn.decode(x, cache)[0].isfinite().all()
        assert attn.decode(x[:, :1], small)[0].isnan().all()


def test_compiled_calls_cast_alike():
    layer = model(TransformerEncoderLayer, 16, 4, 24)
    x = tokens(2, 5, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = layer(x)
        got = torch.compile(layer, backend="eager", fullgraph=True)(x)
        assert torch.equal(got, expected)
    assert attn_torch.arrays.is_autocast(torch.device("meta")) is False
