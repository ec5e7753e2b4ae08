"""PyTorch's transformations of attention: second derivatives, forward mode, vmap.

What is expected is always `attention_steps`, which is array operations all through, or the loop.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, functional, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from attn_torch import (
    MultiHeadAttention,
    QKNorm,
    TransformerEncoderLayer,
    allow,
    attention,
    attention_steps,
    causal,
    padding,
    predicate,
    rotary,
    segments,
    sliding_window,
)
from attn_torch.arrays import is_concrete
from attn_torch.blocked import attention_blocked
from attn_torch.call import check_call

pytestmark = [  # torch's own forward mode and vmap warn of what they themselves do
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]
f64 = torch.float64


def steps(*arrays, **options):
    return attention_steps(*arrays, **options).output


def normal(*shape, seed=0, dtype=f64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inputs(batch=2, heads=2, kv_heads=1, queries=3, keys=5, width=2, value_width=2, spoilt=False):
    query = normal(batch, heads, queries, width, seed=1)
    key = normal(batch, kv_heads, keys, width, seed=2)
    value = normal(batch, kv_heads, keys, value_width, seed=3)
    if spoilt:
        key[0, 0, 1], value[-1, 0, 0] = torch.nan, torch.inf
    return query, key, value


LENGTHS = torch.tensor([4, 0])
CASES = {
    "plain": {},
    "causal": {"sizes": {"queries": 5}, "mask": causal()},
    "one_query": {"sizes": {"queries": 1}, "mask": causal(), "query_offset": 2},
    "padding": {"mask": padding(LENGTHS)},
    "nan_rows": {"mask": padding(LENGTHS), "empty_rows": "nan"},
    "uniform_rows": {"mask": padding(LENGTHS), "empty_rows": "uniform"},
    "window": {"mask": sliding_window(1), "query_offset": torch.tensor([1, -2])},
    "softcap": {"mask": padding(LENGTHS), "softcap": 0.9},
    "wide_values": {"sizes": {"value_width": 3}, "mask": padding(LENGTHS)},
    "negative": {"sizes": {"queries": 5}, "mask": causal(), "scale": -0.7},
    "bias": {"bias": normal(1, 2, 1, 5, seed=5), "mask": padding(LENGTHS)},
    "bias_alone": {"bias": normal(3, 5, seed=5)},
    "not_finite": {"sizes": {"spoilt": True}, "mask": padding(torch.tensor([5, 0]))},
    "hidden_not_finite": {
        "sizes": {"spoilt": True},
        "mask": allow(torch.tensor([[0, 0, 1, 1, 1]] * 3, dtype=torch.bool)[None, None]),
    },
    "tiles": {
        "sizes": {"batch": 1, "queries": 131, "keys": 139},
        "mask": causal() & predicate(lambda batch, head, query, key: (query + key) % 3 > 0),
        "query_offset": 3,
    },
}


def case(name):
    """Return differentiable arrays and the two functions of them that must agree."""
    options = dict(CASES[name])
    arrays = inputs(**options.pop("sizes", {}))
    bias = options.pop("bias", None)

    def call(attend, *arrays):
        extra = {"bias": arrays[3]} if len(arrays) > 3 else {}
        return attend(*arrays[:3], **extra, **options)

    arrays = arrays if bias is None else (*arrays, bias)
    fast, slow = partial(call, attention), partial(call, steps)
    return [array.clone().requires_grad_() for array in arrays], fast, slow


def close(got, expected):
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-9, atol=1e-11)


def twice(attend, arrays, constant: bool, backward: bool):
    """Return the second derivatives, by the inputs and by the incoming gradient."""
    arrays = [array.detach().clone().requires_grad_() for array in arrays]
    output = attend(*arrays)
    incoming = normal(*output.shape, seed=7).requires_grad_(not constant)
    first = torch.autograd.grad(output, arrays, incoming, create_graph=True)
    loss = sum((g * normal(*g.shape, seed=8 + i)).sum() for i, g in enumerate(first))
    wanted = arrays if constant else [*arrays, incoming]
    if not backward:
        return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    loss.backward()
    return [torch.zeros_like(a) if a.grad is None else a.grad for a in wanted]


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
@pytest.mark.parametrize("backward", [True, False], ids=["backward", "grad"])
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_the_textbooks(name, backward, constant):
    arrays, fast, slow = case(name)
    got = twice(fast, arrays, constant, backward)
    expected = twice(slow, arrays, constant, backward)
    assert any(array.any() for array in expected), "the case has no second derivative"
    close(list(got), list(expected))


@pytest.mark.parametrize("name", ["plain", "causal", "padding", "uniform_rows", "softcap", "bias"])
def test_second_derivatives_are_those_of_differences(name):
    arrays, fast, _ = case(name)
    assert gradgradcheck(fast, arrays)


@pytest.mark.parametrize("name", ["causal", "padding", "bias"])
@pytest.mark.parametrize("vectorize", [False, True])
def test_functional_derivatives_are_the_textbooks(name, vectorize):
    arrays, fast, slow = case(name)
    arrays, v = tuple(arrays), tuple(normal(*a.shape, seed=9) for a in arrays)
    power = lambda attend: lambda *a: attend(*a).pow(3).sum()  # noqa: E731 -- not linear in values
    whole = partial(functional.hessian, vectorize=vectorize)
    close(whole(power(fast), arrays), whole(power(slow), arrays))
    jacobian = partial(functional.jacobian, vectorize=vectorize)
    close(jacobian(fast, arrays), jacobian(slow, arrays))
    close(functional.hvp(power(fast), arrays, v)[1], functional.hvp(power(slow), arrays, v)[1])
    close(functional.vhp(power(fast), arrays, v)[1], functional.vhp(power(slow), arrays, v)[1])
    close(functional.jvp(fast, arrays, v)[1], functional.jvp(slow, arrays, v)[1])


@pytest.mark.parametrize("name", ["plain", "padding"])
def test_batches_of_gradients_are_the_textbooks(name):
    arrays, fast, slow = case(name)
    incoming = normal(3, *fast(*arrays).shape, seed=4)
    batched = partial(torch.autograd.grad, inputs=arrays, grad_outputs=incoming)
    got, expected = (batched(f(*arrays), is_grads_batched=True) for f in (fast, slow))
    close(got, expected)
    output = fast(*arrays)
    one = lambda g: torch.autograd.grad(output, arrays, g, retain_graph=True)  # noqa: E731
    close(vmap(one)(incoming), expected)


@pytest.mark.parametrize("name", CASES)
def test_third_derivatives_are_the_textbooks(name):
    found = []
    for attend in case(name)[1:]:
        query, *others = case(name)[0]
        deeper = attend(query, *others).pow(2).sum()
        for _ in range(3):
            (deeper,) = torch.autograd.grad(deeper, query, torch.ones_like(deeper), True, True)
        found.append(deeper)
    close(*found)


def test_one_tensor_may_be_query_key_and_value():
    x = normal(1, 2, 5, 3).requires_grad_()
    mask = causal() & padding([4])
    got, expected = (
        functional.hessian(lambda x, f=f: f(x, x, x, mask=mask).pow(2).sum(), x)
        for f in (attention, steps)
    )
    close(got, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_of_meta_learning_has_its_second_order(masked):
    layer = TransformerEncoderLayer(6, 2, 7, dropout=0.0, dtype=f64)
    x, hidden = normal(2, 5, 6), torch.arange(5) >= torch.tensor([[5], [3]])

    def loss(parameters, x, need_weights):
        arguments = (x, None, hidden if masked else None)
        output = functional_call(layer, parameters, arguments, {"need_weights": need_weights})
        return (output[0] if need_weights else output).sin().mean()

    def meta_gradient(need_weights):
        start = {n: p.detach().requires_grad_() for n, p in layer.named_parameters()}
        step = torch.autograd.grad(
            loss(start, x, need_weights), list(start.values()), None, True, True
        )
        moved = {n: p - 0.5 * d for (n, p), d in zip(start.items(), step, strict=True)}
        return torch.autograd.grad(loss(moved, x + 1, need_weights), list(start.values()))

    close(meta_gradient(False), meta_gradient(True))


def test_blocks_alone_refuse_a_second_derivative():
    arrays = [array.requires_grad_() for array in inputs()]
    output = attention_blocked(*arrays, check_call(*arrays, padding(LENGTHS)))
    with pytest.raises(NotImplementedError, match=r"use attention or attention_steps: got create"):
        torch.autograd.grad(output.sum(), arrays[0], create_graph=True)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_the_textbooks(name):
    arrays, fast, slow = case(name)
    arrays = tuple(array.detach() for array in arrays)
    tangents = tuple(normal(*array.shape, seed=6) for array in arrays)
    expected = jvp(slow, arrays, tangents)
    close(jvp(fast, arrays, tangents), expected)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(*pair) for pair in zip(arrays, tangents, strict=True)]
        close(forward_ad.unpack_dual(fast(*dual)).tangent, expected[1])


TRANSFORMS = {
    "grad_grad": lambda f: grad(lambda x: grad(f)(x).square().sum()),
    "hessian": hessian,
    "jacrev_jacfwd": lambda f: jacrev(jacfwd(f)),
    "jacfwd_jacrev": lambda f: jacfwd(jacrev(f)),
    "vmap_of_hvp": lambda f: (
        lambda x: vmap(lambda t: jvp(grad(f), (x,), (t,))[1])(torch.stack((x, 2 * x)))
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["causal", "padding", "softcap", "not_finite"])
def test_torch_func_is_the_textbooks(name, transform):
    arrays, fast, slow = case(name)
    query, *others = (array.detach() for array in arrays)
    found = [
        TRANSFORMS[transform](lambda x, f=f: f(x, *others).pow(2).sum())(query)
        for f in (fast, slow)
    ]
    close(*found)


# vmap, against the loop


def check_vmap(function, *mapped):
    """Check a function under vmap against itself, sample by sample; it may return several."""
    loop = [function(*sample) for sample in zip(*mapped, strict=True)]
    got = vmap(function)(*mapped)
    if isinstance(got, tuple):
        loop = tuple(torch.stack(parts) for parts in zip(*loop, strict=True))
    else:
        loop = torch.stack(loop)
    close(got, loop)


QUERY, KEY, VALUE = inputs()
SAMPLES = [torch.stack([a, a.flip(0), 2 * a]) for a in inputs()]  # three calls


def test_vmap_over_samples_and_lengths():
    lengths = torch.tensor([[3, 5], [0, 1], [4, 2]])
    check_vmap(attention, *SAMPLES)
    check_vmap(lambda q, n: attention(q, KEY, VALUE, mask=padding(n)), SAMPLES[0], lengths)
    check_vmap(
        lambda n: attention(QUERY, KEY, VALUE, mask=padding(n), empty_rows="uniform"), lengths
    )


def test_vmap_over_every_other_array_of_a_call():
    call = partial(attention, QUERY, KEY, VALUE)
    offsets, ids = torch.tensor([[0, 2], [1, -3]]), torch.arange(20).reshape(2, 2, 5) % 3
    check_vmap(lambda offset: call(mask=causal(), query_offset=offset), offsets)
    check_vmap(lambda offset: call(mask=causal(), query_offset=offset), offsets[:, 0])
    check_vmap(lambda ids: call(mask=segments(ids) & causal(), query_offset=1), ids)
    check_vmap(lambda bias: call(bias=bias), normal(2, 3, 5))
    cells = normal(2, 2, 2, 3, 5) > 0
    check_vmap(lambda cells: call(mask=allow(cells), empty_rows="nan"), cells)


def test_vmap_over_gradients():
    lengths = torch.tensor([[3, 5], [0, 1], [4, 2]])

    def loss(query, lengths):
        return attention(query, KEY, VALUE, mask=padding(lengths)).pow(2).sum()

    check_vmap(grad(loss), SAMPLES[0], lengths)
    check_vmap(lambda q, n: jvp(lambda q: loss(q, n), (q,), (q,)), SAMPLES[0], lengths)
    check_vmap(lambda q, n: hessian(loss)(q, n), SAMPLES[0], lengths)


def test_keys_that_are_not_finite_stay_in_their_sample():
    key = SAMPLES[1].clone()
    key[1, 0, 0, 2] = torch.inf
    check_vmap(lambda k: attention(QUERY, k, VALUE, mask=padding([3, 2])), key)


def test_per_sample_gradients_are_the_loops():
    layer, x = TransformerEncoderLayer(6, 2, 7, dtype=f64).eval(), normal(3, 5, 6)
    hidden = torch.arange(5) >= torch.tensor([[5], [3], [0]])
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x, hidden):
        options = {"src_key_padding_mask": hidden[None], "src_mask": causal()}
        return functional_call(layer, parameters, (x[None],), options).square().mean()

    got = vmap(grad(loss), (None, 0, 0))(parameters, x, hidden)
    for i in range(3):
        one = grad(loss)(parameters, x[i], hidden[i])
        close({name: g[i] for name, g in got.items()}, one)


def test_an_ensemble_of_models_is_its_models():
    models = [MultiHeadAttention(6, 2, dtype=f64).eval() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    x, hidden = normal(2, 5, 6), torch.arange(5) >= torch.tensor([[5], [3]])

    def one(parameters, buffers):
        options = {"key_padding_mask": hidden, "need_weights": False}
        return functional_call(models[0], (parameters, buffers), (x,), options)[0]

    expected = [m(x, key_padding_mask=hidden, need_weights=False)[0] for m in models]
    close(vmap(one)(parameters, buffers), torch.stack(expected))


def test_an_ensemble_of_processed_heads_is_its_models():
    def new():
        heads = QKNorm(4, rotary(base=99.0), dtype=f64)
        nn.init.uniform_(heads.k_norm.weight, 0.5, 2.0)
        return MultiHeadAttention(6, 2, head_dim=4, process_heads=heads, dtype=f64).eval()

    models, x = [new() for _ in range(3)], normal(3, 2, 5, 6)
    parameters, _ = stack_module_state(models)
    assert parameters["process_heads.k_norm.weight"].shape == (3, 4)

    def loss(parameters, x):
        options = {"attn_mask": causal(), "need_weights": False}
        return functional_call(models[0], parameters, (x,), options)[0].sin().sum()

    got = vmap(grad(loss))(parameters, x)
    for i, model in enumerate(models):
        one = grad(loss)({name: p.detach() for name, p in model.named_parameters()}, x[i])
        close({name: g[i] for name, g in got.items()}, one)


@pytest.mark.parametrize("fill", [1.0, torch.nan])
@pytest.mark.parametrize("mask", [causal() & predicate(lambda b, h, q, k: k != 2), "bias"])
def test_values_of_a_module_mapped_and_differentiated_alone(mask, fill):
    """The key is an ordinary array, at which one could look."""
    attn, (x, key) = MultiHeadAttention(8, 2, dtype=f64), torch.randn(2, 2, 5, 8, dtype=f64)
    if mask == "bias":
        mask = torch.randn(5, 5, dtype=f64)
        mask[:, 2] = -torch.inf
    values = torch.randn(3, 2, 5, 8, dtype=f64)
    values[:, :, 2] = fill
    call = lambda value: attn(x, key, value, attn_mask=mask, need_weights=False)[0]  # noqa: E731
    close(vmap(call)(values), torch.stack([call(value) for value in values]))
    one = values[0].clone().requires_grad_()
    wanted = torch.autograd.grad(call(one).sum(), one)[0]
    close(grad(lambda value: call(value).sum())(values[0]), wanted)
    torch.compile(call, fullgraph=True, backend="aot_eager")(values[0]).sum().backward()
    assert not any(p.grad.isnan().any() for p in attn.parameters())


# What may be looked at


def test_values_are_known_of_ordinary_tensors_alone():
    class Other(torch.Tensor):
        pass

    x, seen = torch.ones(2, 3), {}
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    vmap(lambda x: seen.update(vmap=is_concrete(x), beside=is_concrete(torch.ones(2))) or x)(x)
    grad(lambda x: seen.update(grad=is_concrete(x)) or x.sum())(x)
    jvp(lambda x: seen.update(jvp=is_concrete(x)) or x, (x,), (x,))
    torch.jit.trace(lambda x: seen.update(trace=is_concrete(x)) or x, x, check_trace=False)
    assert seen == dict.fromkeys(("vmap", "grad", "jvp", "trace"), False) | {"beside": True}
    assert is_concrete(x) and is_concrete(torch.nn.Parameter(x)) and is_concrete(x.double())
    assert not any(map(is_concrete, (x.to("meta"), fake, x.as_subclass(Other), [1.0], None)))
