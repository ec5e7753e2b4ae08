"""What users met: tables and outputs written to, copies, new parts, sizes not known yet."""

import copy
import json
import re
import warnings
from collections.abc import Callable

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import attn_jax
import attn_numpy
import attn_torch
from attn_torch.weights import ties

T = 140  # more than a tile


def qkv(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, T, 8, generator=generator).requires_grad_() for _ in range(3)]


def hidden() -> torch.Tensor:
    return torch.arange(T).expand(2, T) > torch.tensor([[60], [99]])


def columns(table: torch.Tensor) -> Callable:
    return lambda batch, head, query, key: table[key] & (query >= 0)


TABLES = {
    "padding": (hidden, lambda table: {"mask": attn_torch.padding(hidden=table)}),
    "allow": (
        lambda: torch.ones(2, 1, T, T, dtype=torch.bool).tril(),
        lambda table: {"mask": attn_torch.causal() & ~attn_torch.hide(table)},
    ),
    "closure": (
        lambda: torch.ones(T, dtype=torch.bool),
        lambda table: {"mask": attn_torch.causal() & attn_torch.predicate(columns(table))},
    ),
    "offset": (
        lambda: torch.tensor([0, 3]),
        lambda table: {"mask": attn_torch.causal(), "query_offset": table},
    ),
}


@pytest.mark.parametrize("create_graph", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_written_to_before_the_gradients_are_refused(name, create_graph):
    make, options = TABLES[name]
    arrays, table = qkv(), make()
    output = attn_torch.attention(*arrays, **options(table))
    table.zero_()
    with pytest.raises(RuntimeError, match="must stay as they were until gradients are taken"):
        torch.autograd.grad(output.sum(), arrays, create_graph=create_graph)


@pytest.mark.parametrize("name", TABLES)
def test_tables_written_to_after_the_gradients_are_not(name):
    make, options = TABLES[name]
    arrays, table = qkv(), make()
    for _ in range(2):
        torch.autograd.grad(attn_torch.attention(*arrays, **options(table)).sum(), arrays)
        table.zero_()


@pytest.mark.parametrize("tied", [False, True])
def test_an_optimizer_goes_on_with_what_was_imported(tied):
    attn, other = (attn_torch.MultiHeadAttention(8, 2) for _ in range(2))
    for module in (attn, other) if tied else ():
        module.v_proj.weight = module.k_proj.weight
    optimizer = torch.optim.SGD(attn.parameters(), lr=0.5)
    attn_torch.import_weights(attn, attn_torch.export_weights(other))
    attn(torch.ones(1, 3, 8))[0].sum().backward()
    optimizer.step()
    assert attn.out_proj.bias.tolist() == [-1.5] * 8
    assert not torch.equal(attn.k_proj.weight, other.k_proj.weight) or not tied


def test_lengths_are_copied_and_may_change():
    arrays, lengths = qkv(), torch.tensor([60, 99])
    mask = attn_torch.padding(lengths)
    expected = torch.autograd.grad(attn_torch.attention(*arrays, mask=mask).sum(), arrays)
    output = attn_torch.attention(*arrays, mask=mask)
    lengths.zero_()
    for got, grad in zip(torch.autograd.grad(output.sum(), arrays), expected, strict=True):
        assert torch.equal(got, grad)


def test_a_mask_of_inference_mode_trains():
    with torch.inference_mode():
        mask = attn_torch.padding(hidden=hidden())
    arrays = qkv()
    grads = torch.autograd.grad(attn_torch.attention(*arrays, mask=mask).sum(), arrays)
    assert all(grad.isfinite().all() for grad in grads)


def test_an_output_in_tiles_may_be_written_to():
    arrays, mask = qkv(), attn_torch.sliding_window(3)
    output = attn_torch.attention(*arrays, mask=mask)
    expected = torch.autograd.grad(output[:, :, 1:].square().sum(), arrays)
    output = attn_torch.attention(*arrays, mask=mask)
    output[:, :, 0] = 0
    got = torch.autograd.grad(output.square().sum(), arrays)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("module", [attn_numpy, attn_torch, attn_jax])
def test_a_shallow_copy_of_a_cache_goes_its_own_way(module):
    one = np.ones((1, 2, 1, 4), np.float32)
    array = {attn_numpy: np.asarray, attn_torch: torch.tensor}.get(module, attn_jax.cache.jnp.array)
    cache = module.KVCache.empty(1, 2, 5, 4)
    stack = module.StackCache((cache,))
    for taken, other in ((cache, copy.copy(cache)), (stack.layers[0], copy.copy(stack).layers[0])):
        assert other is not taken
        other = other.append(array(one), array(one))
        assert float(taken.key.sum()) == 0
        assert float(other.key.sum()) == 8


@pytest.mark.parametrize("module", [attn_numpy, attn_torch])
def test_a_cache_of_one_array_twice_is_refused(module):
    slots, one = np.zeros((1, 2, 5, 4), np.float32), np.ones((1, 2, 1, 4), np.float32)
    lengths = np.zeros(1, np.int64)
    if module is attn_torch:
        slots, one, lengths = (torch.from_numpy(array) for array in (slots, one, lengths))
    with pytest.raises(ValueError, match="they must be two: got one array"):
        module.KVCache(slots, slots, lengths).append(one, one)
    assert float(slots.sum()) == 0


WRONG_SETTINGS = {
    "dropout": (2.0, ValueError, "dropout must lie in 0..1: got 2.0"),
    "empty_rows": ("mean", ValueError, "empty_rows must be 'zero', 'nan' or 'uniform': got 'mean'"),
    "scale": ("large", TypeError, "scale must be a number: got str"),
    "softcap": (0, ValueError, "softcap must be above 0: got 0"),
    "process_heads": (3, TypeError, "process_heads must be a function of query, key and positions"),
}


@pytest.mark.parametrize("module", [attn_numpy, attn_torch, attn_jax])
@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_settings_that_were_made_wrong_are_refused(module, name):
    options = {"rngs": nnx.Rngs(0)} if module is attn_jax else {}
    attn, x = module.MultiHeadAttention(8, 2, **options), np.ones((1, 3, 8), np.float32)
    x = {attn_numpy: np.asarray, attn_torch: torch.tensor}.get(module, jax.numpy.asarray)(x)
    wrong, error, text = WRONG_SETTINGS[name]
    setattr(attn, name, wrong)
    for cache in (attn.new_cache(1, 4), attn.new_cache(1, window=2)):
        for call in (lambda: attn(x), lambda: attn.decode(x[:, :1], cache)):  # noqa: B023
            with pytest.raises(error, match=re.escape(text)):
                call()
        setattr(attn, name, {"dropout": 0.0, "empty_rows": "zero"}.get(name))
        assert attn.decode(x[:, :1], cache)[1].lengths.tolist() == [1]
        setattr(attn, name, wrong)


def test_calls_make_nothing_on_the_default_device():
    query, bias = torch.randn(1, 2, 5, 4), torch.randn(5, 5)
    expected = attn_torch.attention(query, query, query, bias=bias)
    with torch.device("meta"):
        got = attn_torch.attention(query, query, query, bias=bias)
    assert torch.equal(got, expected)


def test_a_new_projection_like_the_old_is_saved(tmp_path):
    attn, x = attn_torch.MultiHeadAttention(8, 2), torch.randn(1, 3, 8)
    attn.out_proj = nn.Linear(8, 8)
    attn_torch.save(attn, tmp_path / "attn.safetensors")
    assert torch.equal(attn_torch.load(tmp_path / "attn.safetensors")(x)[0], attn(x)[0])


class Sharded(torch.Tensor):
    """A parameter without memory of its own, as distributed and quantised ones are."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(function)


def test_parameters_without_memory_are_not_taken_for_tied():
    attn = attn_torch.MultiHeadAttention(8, 2, bias=False)
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(attn, name)._parameters["weight"] = Sharded(torch.zeros(8, 8))
    assert ties(attn) == {}
    attn.k_proj._parameters["weight"] = attn.q_proj._parameters["weight"]
    assert ties(attn) == {"k_proj.weight": "q_proj.weight"}


class Last(nn.Module):
    """Attention whose queries are the last positions."""

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        offset = key.shape[2] - query.shape[2]
        return attn_torch.attention(query, key, key, mask=WINDOW, query_offset=offset)


WINDOW = attn_torch.causal() & attn_torch.sliding_window(4)
SIZES = [(3, 7), (6, 9), (5, 5), (131, 140), (9, 4)]


@pytest.mark.parametrize("strict", [False, True])
def test_queries_at_the_end_are_exported(strict):
    queries, keys = (torch.export.Dim(name, min=2, max=600) for name in "TS")
    sizes = ({2: queries}, {2: keys})
    example = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 9, 4)
    program = torch.export.export(Last(), example, dynamic_shapes=sizes, strict=strict).module()
    for rows, columns in SIZES:
        query, key = torch.randn(1, 2, rows, 4), torch.randn(1, 2, columns, 4)
        torch.testing.assert_close(program(query, key), Last()(query, key))


def test_a_strict_export_without_a_mask_takes_equal_lengths():
    class Cross(nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            mask = attn_torch.padding(hidden=key[:, 0, :, 0] > 1)
            unmasked = attn_torch.attention(query, key, key)
            return unmasked + attn_torch.attention(query, key, key, mask=mask)

    queries, keys = (torch.export.Dim(name, min=2, max=600) for name in "TS")
    example = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 9, 4)
    sizes = ({2: queries}, {2: keys})
    program = torch.export.export(Cross(), example, dynamic_shapes=sizes, strict=True).module()
    query, key = torch.randn(2, 1, 2, 5, 4)
    torch.testing.assert_close(program(query, key), Cross()(query, key))


def test_queries_at_the_end_are_exported_in_jax():
    def last(query, key):
        offset = key.shape[2] - query.shape[2]
        mask = attn_jax.causal() & attn_jax.sliding_window(4)
        return attn_jax.attention(query, key, key, mask=mask, query_offset=offset)

    rows, columns = jax.export.symbolic_shape("t, s")
    shapes = [jax.ShapeDtypeStruct((1, 2, size, 4), np.float32) for size in (rows, columns)]
    program = jax.export.export(jax.jit(last))(*shapes)
    rng = np.random.default_rng(0)
    for sizes in SIZES:
        arrays = [rng.normal(size=(1, 2, size, 4)).astype(np.float32) for size in sizes]
        np.testing.assert_allclose(program.call(*arrays), last(*arrays), atol=1e-6)


def nested(*shapes: tuple[int, ...], layout: torch.layout = torch.jagged) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype
        return torch.nested.nested_tensor([torch.ones(shape) for shape in shapes], layout=layout)


ONES = torch.ones(2, 2, 5, 8)
NO_ARRAYS = {  # what is no array here: (B, H, T, D), and (B, S)
    "nested": (nested((2, 5, 8), (2, 3, 8)), nested((5,), (3,))),
    "nested, strided": (nested((2, 5, 8), (2, 3, 8), layout=torch.strided),) * 2,
    "sparse": (ONES.to_sparse(), ONES[0, :, :, 0].to_sparse()),
    "mkldnn": (ONES.to_mkldnn(), ONES[0, :, :, 0].to_mkldnn()),
}


@pytest.mark.parametrize("name", NO_ARRAYS)
def test_sparse_and_nested_tensors_are_refused(name):
    wrong, rows = NO_ARRAYS[name]
    attn, x = attn_torch.MultiHeadAttention(8, 2), torch.ones(2, 5, 8)
    calls = {
        "query": lambda: attn_torch.attention(wrong, wrong, wrong),
        "value": lambda: attn_torch.attention_steps(ONES, ONES, wrong),
        "bias": lambda: attn_torch.attention(ONES, ONES, ONES, bias=wrong),
        "allow": lambda: attn_torch.allow(wrong),
        "hidden": lambda: attn_torch.padding(hidden=rows),
        "query_ids": lambda: attn_torch.segments(rows),
        "lengths": lambda: attn_torch.padding(rows),
        "key": lambda: attn(x, wrong),
        "x": lambda: attn.decode(wrong, attn.new_cache(2, 5)),
        "attn_mask": lambda: attn(x, attn_mask=wrong),
        "key_padding_mask": lambda: attn(x, key_padding_mask=rows),
    }
    for argument, call in calls.items():
        rule = rf"{argument} must be .*: got .*Tensor \(t.* is its array"
        with pytest.raises(TypeError, match=rule):
            call()


def test_a_model_without_values_decodes_to_shapes():
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 16}
    model = attn_torch.Seq2SeqTransformer(11, 13, d_model=8, nhead=2, device="meta", **sizes)
    tokens = torch.ones(2, 3, dtype=torch.int64, device="meta")
    cache = model.eval().start(tokens, 7)
    for _ in range(2):
        logits, cache = model.decode(tokens, cache)
        assert logits.shape == (2, 3, 13)
    assert cache.truncate(2).reorder(torch.tensor([1, 0])).copy().lengths.is_meta
    out = attn_torch.greedy_decode(model, tokens, tokens[:, :1], eos_idx=2, max_new_tokens=4)
    assert out.is_meta
    assert out.shape == (2, 4)


def test_a_part_is_computed_again_on_the_way_back():
    query, key, value = qkv()

    def output(*inputs):
        return attn_torch.attention_part(*inputs).output

    kept = torch.utils.checkpoint.checkpoint(output, query, key, value, use_reentrant=False)
    wanted = torch.autograd.grad(output(query, key, value).sum(), query)
    torch.testing.assert_close(torch.autograd.grad(kept.sum(), query), wanted)


def test_a_part_has_second_derivatives_by_its_values():
    inputs = [x.detach()[:1, :, :7].double().requires_grad_() for x in qkv()]

    def slopes(output):
        first = torch.autograd.grad(output.pow(2).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(x.pow(2).sum() for x in first), inputs)

    torch.testing.assert_close(
        slopes(attn_torch.attention_part(*inputs).output), slopes(attn_torch.attention(*inputs))
    )


def test_a_sink_of_minus_infinity_stays_below_a_fill_of_the_lowest_number():
    query, key, value = (x.detach() for x in qkv())
    bias = torch.zeros(T, T)
    bias[1] = torch.finfo(torch.float32).min
    sinks = torch.tensor([-torch.inf, 0.5, 0.0, -torch.inf])
    got = attn_torch.attention(query, key, value, bias=bias, sinks=sinks)[:, ::3, 1]
    torch.testing.assert_close(got, value[:, ::3].mean(2))


MODULES = {
    "numpy": lambda **told: attn_numpy.MultiHeadAttention(8, 2, **told),
    "torch": lambda **told: attn_torch.MultiHeadAttention(8, 2, **told),
    "jax": lambda **told: attn_jax.MultiHeadAttention(8, 2, rngs=nnx.Rngs(0), **told),
}
ARRAYS = {"numpy": np.ones, "torch": torch.ones, "jax": jax.numpy.ones}


@pytest.mark.parametrize("backend", MODULES)
def test_sinks_of_other_heads_in_a_module_are_refused(backend):
    attn, ones = MODULES[backend](sinks=True), ARRAYS[backend]
    x = ones((2, 5, 8), dtype=getattr(ones((1,)), "dtype", None))
    for shape in ((1,), (2, 1), (3,)):
        attn.sinks = (
            nn.Parameter(ones(shape))
            if backend == "torch"
            else nnx.Param(ones(shape))
            if backend == "jax"
            else ones(shape, np.float32)
        )
        x = x.astype(np.float32) if backend == "numpy" else x
        for call in (attn, lambda x: attn.decode(x, attn.new_cache(2, 5))):
            with pytest.raises(ValueError, match=r"sinks must be \(H,\) = \(2,\): got"):
                call(x)


@pytest.mark.parametrize("backend", MODULES)
def test_a_norm_of_other_heads_is_refused(backend):
    module = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}[backend]
    told = {"rngs": nnx.Rngs(0)} if backend == "jax" else {}
    attn = MODULES[backend](process_heads=module.QKNorm(1, **told))
    x = ARRAYS[backend]((2, 5, 8))
    with pytest.raises(ValueError, match="QKNorm's head_dim must be that of the heads, 4: got 1"):
        attn(x.astype(np.float32) if backend == "numpy" else x)


def test_a_norm_keeps_16_bits():
    told = {"rngs": nnx.Rngs(0)}
    norm = attn_jax.QKNorm(4, **told)
    attn = attn_jax.MultiHeadAttention(8, 2, dtype=jax.numpy.bfloat16, process_heads=norm, **told)
    assert attn(jax.numpy.ones((2, 5, 8), jax.numpy.bfloat16))[0].dtype == jax.numpy.bfloat16


@pytest.mark.parametrize("backend", MODULES)
def test_narrow_heads_go_through_the_layout_of_nnx(backend):
    module = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}[backend]
    one, other = (MODULES[backend](head_dim=3) for _ in range(2))
    module.import_weights(other, module.export_weights(one, "nnx"), "nnx")
    ours, theirs = (module.export_weights(attn) for attn in (one, other))
    for name, array in ours.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(theirs[name]), name)


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("wrong", [{}, {"class": "QKNorm", "head_dim": 10**14}])
def test_a_setting_that_is_a_part_is_built_in_its_place_only(tmp_path, backend, wrong):
    module = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}[backend]
    path = tmp_path / "model.safetensors"
    module.save(MODULES[backend](), path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    head, rest = json.loads(path.read_bytes()[8 : 8 + size]), path.read_bytes()[8 + size :]
    settings = json.loads(head["__metadata__"]["configuration"])
    head["__metadata__"]["configuration"] = json.dumps(settings | {"scale": wrong})
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    with pytest.raises((TypeError, ValueError), match=": got"):
        module.load(path)


def test_sinks_start_where_a_module_without_values_gets_them():
    attn = attn_torch.MultiHeadAttention(8, 2, sinks=True, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        attn.sinks.fill_(torch.nan)
    for part in attn.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert attn.sinks.tolist() == [0.0, 0.0]
