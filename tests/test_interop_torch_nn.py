"""`attn_torch.interop.torch_nn` beside the real torch.nn, alone and inside torch's own layers."""

import copy
import inspect
import io
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from attn_torch import causal
from attn_torch.interop import torch_nn
from attn_torch.interop.torch_nn import MultiheadAttention, replace
from conformance.oracle.tolerance import compare
from conformance.subjects.attn_torch import Adapter

ROOT = Path(__file__).parents[1]
B, E, H, T, S = 3, 14, 2, 5, 7
INF = math.inf
NARROW = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
ROUNDINGS = 8  # two for each product in a row: in, scores, mean, out

pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for mismatched"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]
numpy = Adapter().numpy


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module(kind, dtype=torch.float64, **config):
    """Return a module of either kind; with one config, both have the same weights."""
    theirs = nn.MultiheadAttention(E, H, **config, dtype=torch.float64)
    state = {
        k: normal(*v.shape, seed=i) / 3 for i, (k, v) in enumerate(theirs.state_dict().items())
    }
    attn = kind(E, H, **config, dtype=torch.float64)
    attn.load_state_dict(state)
    return attn.to(dtype)


def cast(value, dtype):
    return (
        value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )


def run(kind, dtype, inputs, config=None, **options):
    """Return output, weights and all gradients of a call by name, as arrays."""
    attn = module(kind, dtype, **(config or {}))
    inputs = [x.detach().to(dtype, copy=True).requires_grad_() for x in inputs]
    outputs = attn(*inputs, **{name: cast(value, dtype) for name, value in options.items()})
    results = {n: x for n, x in zip(("output", "weights"), outputs, strict=True) if x is not None}
    sum((x * normal(*x.shape, seed=9).to(x)).sum() for x in results.values()).backward()
    results |= {f"gradient of {n}": p.grad for n, p in attn.named_parameters()}
    results |= {f"gradient of input {i}": x.grad for i, x in enumerate(inputs)}
    return {name: numpy(x.detach()) for name, x in results.items()}


def check(results, exact, naive, narrow=1.0):
    """Check each result against torch's in float64, as closely as torch rounds in float32."""
    assert set(results) == set(exact)
    for name, right in exact.items():
        rounded = right + (naive[name].astype(float) - right) * narrow
        compare(results[name], right, rounded, name, ROUNDINGS)


CONFIGS = {
    "self": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "other_features": {"kdim": 11, "vdim": 3},
    "added_bias": {"add_bias_kv": True},
    "added_both": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 11, "batch_first": True},
    "one_sample": {"batch_first": True},
}
PAD = torch.arange(T) >= torch.tensor([T, 3, 1])[:, None]
BAND = torch.ones(T, T, dtype=torch.bool).triu(2)
MASKS = {
    "none": {},
    "bool_padding": {"key_padding_mask": PAD},
    "float_padding": {"key_padding_mask": torch.zeros(B, T).masked_fill(PAD, -INF)},
    "added_padding": {"key_padding_mask": torch.where(PAD, -INF, normal(B, T, seed=5))},
    "bool": {"attn_mask": BAND},
    "float": {"attn_mask": torch.zeros(T, T).masked_fill(BAND, -INF)},
    "added": {"attn_mask": normal(T, T, seed=6)},
    "bool_of_heads": {"attn_mask": normal(B * H, T, T, seed=7) > 0},
    "added_of_heads": {"attn_mask": normal(B * H, T, T, seed=8).masked_fill(BAND, -INF)},
    "bool_and_float_padding": {"attn_mask": BAND, "key_padding_mask": -PAD.double() / 0.1},
    "both_added": {
        "attn_mask": normal(B * H, T, T, seed=8),
        "key_padding_mask": torch.where(PAD, -INF, normal(B, T, seed=5)),
    },
    "both_bool": {"attn_mask": BAND, "key_padding_mask": PAD},
    "causal": {"attn_mask": torch.ones(T, T, dtype=torch.bool).triu(1), "is_causal": True},
    "causal_and_padding": {
        "attn_mask": nn.Transformer.generate_square_subsequent_mask(T),
        "key_padding_mask": PAD,
        "is_causal": True,
    },
}


def call(name, mask):
    """Return inputs and masks of a config: T keys in self-attention, of one sample the first."""
    config = CONFIGS[name]
    features = [E, config.get("kdim", E), config.get("vdim", E)]
    inputs = [normal(B, T, size, seed=20 + i) for i, size in enumerate(features)]
    options = dict(MASKS[mask])
    if options.get("attn_mask", BAND).dtype == torch.bool and "attn_mask" in options:
        options["attn_mask"] = options["attn_mask"].clone()
        options["attn_mask"][..., 0] = False  # torch makes NaN of a fully masked row
    if name == "one_sample":
        inputs = [x[1] for x in inputs]
        if "key_padding_mask" in options:
            options["key_padding_mask"] = options["key_padding_mask"][1]
        if options.get("attn_mask", BAND).ndim == 3:
            options["attn_mask"] = options["attn_mask"][H : 2 * H]
    elif not config.get("batch_first"):
        inputs = [x.swapaxes(0, 1) for x in inputs]
    return inputs, options


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_everything_is_what_torch_gives(name, mask):
    inputs, options = call(name, mask)
    hinted = {} if "added" in name else options  # with the hint torch hides the keys that it adds
    theirs = {k: x for k, x in options.items() if k != "is_causal"} | hinted
    for weights in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        told = (inputs, CONFIGS[name])
        exact = run(nn.MultiheadAttention, torch.float64, *told, **theirs, **weights)
        naive = run(nn.MultiheadAttention, torch.float32, *told, **theirs, **weights)
        check(run(MultiheadAttention, torch.float32, *told, **options, **weights), exact, naive)
        results = run(MultiheadAttention, torch.float64, *told, **options, **weights)
        check(results, exact, naive, 2 * NARROW)  # torch's answer is rounded, too


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "output_alone"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_round_no_more_than_torch(dtype, weights):
    inputs, _ = call("batch_first", "none")
    inputs = [x.to(dtype) for x in inputs]
    rounded = module(MultiheadAttention, dtype, batch_first=True)
    options = {"key_padding_mask": PAD, "need_weights": weights}
    results = []
    for kind, wide in ((nn.MultiheadAttention, torch.float64), (nn.MultiheadAttention, dtype)):
        attn = module(kind, batch_first=True).to(wide)
        attn.load_state_dict(rounded.state_dict())
        results.append(attn(*(x.to(wide) for x in inputs), **options))
    for got, exact, naive in zip(rounded(*inputs, **options), *results, strict=True):
        if got is not None:
            assert got.dtype == dtype
            arrays = [numpy(x.detach()) for x in (got, exact, naive)]
            compare(*arrays, "output or weights", ROUNDINGS)


@pytest.mark.parametrize("added", [False, True], ids=["plain", "added_keys"])
def test_autocast_gives_the_dtypes_of_torch(added):
    inputs, _ = call("batch_first", "none")
    config = {"batch_first": True, "add_bias_kv": added, "add_zero_attn": added}
    exact = module(nn.MultiheadAttention, **config)(*inputs, key_padding_mask=PAD)
    inputs = [x.float() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (
            module(kind, torch.float32, **config)(*inputs, key_padding_mask=PAD)
            for kind in (nn.MultiheadAttention, MultiheadAttention)
        )
    for got, right, naive in zip(ours, exact, theirs, strict=True):
        assert got.dtype == naive.dtype
        error, limit = ((x.double() - right).abs().max() for x in (got, naive))
        assert error <= 2 * limit + ROUNDINGS * torch.finfo(torch.bfloat16).eps


def test_fills_of_two_float16_masks_do_not_add_up_to_a_mask():
    x = torch.ones(T, B, E).half()
    attn = module(MultiheadAttention, torch.float16)
    masks = {"attn_mask": torch.full((T, T), -6e4).half()}
    right = attn(x, x, x)[0]
    assert torch.equal(attn(x, x, x, torch.full((B, T), -6e4).half(), **masks)[0], right)


def test_mask_that_is_learned_gets_its_gradient():
    inputs, _ = call("self", "none")
    slopes = []
    for kind in (nn.MultiheadAttention, MultiheadAttention):
        mask = torch.zeros(T, T, dtype=torch.float64, requires_grad=True)
        module(kind)(*inputs, attn_mask=mask)[0].square().sum().backward()
        slopes.append(numpy(mask.grad))
    compare(slopes[1], slopes[0], slopes[0], "gradient of attn_mask", ROUNDINGS)


@pytest.mark.parametrize("sizes", [(2, 0, 3), (2, 3, 0), (0, 3, 5), (2, 0, 0)])
def test_sizes_of_0_give_the_shapes_of_torch(sizes):
    batch, queries, keys = sizes
    attn = module(MultiheadAttention, torch.float32, batch_first=True)
    query, key = torch.ones(batch, queries, E), torch.full((batch, keys, E), torch.nan)
    masks = {
        "key_padding_mask": torch.ones(batch, keys, dtype=torch.bool),
        "attn_mask": torch.zeros(queries, keys),
    }
    for options in ({}, masks):
        output, weights = attn(query, key, key, **options)
        assert output.shape == query.shape and weights.shape == (batch, queries, keys)
        if options or not keys:
            assert (output == attn.out_proj.bias).all()


# What torch's module gets wrong


EMPTY = {
    "bool_padding": {"key_padding_mask": PAD | (torch.arange(B) == 1)[:, None]},
    "float_padding": {
        "key_padding_mask": torch.zeros(B, T).masked_fill((torch.arange(B) == 1)[:, None], -INF)
    },
    "two_masks": {
        "key_padding_mask": torch.arange(T) < torch.tensor([0, T, 2])[:, None],
        "attn_mask": torch.ones(T, T, dtype=torch.bool).triu(1),
    },
    "a_head": {"attn_mask": (torch.arange(B * H) % H == 1)[:, None, None].expand(-1, T, T)},
}


@pytest.mark.parametrize("name", EMPTY)
def test_fully_masked_rows_are_zero_with_weights_and_without(name):
    inputs, _ = call("batch_first", "none")
    config = {"batch_first": True}
    each = {"average_attn_weights": False}
    whole = run(MultiheadAttention, torch.float64, inputs, config, **EMPTY[name], **each)
    alone = run(
        MultiheadAttention, torch.float64, inputs, config, **EMPTY[name], need_weights=False
    )
    compare(alone["output"], whole["output"], whole["output"], "output alone", ROUNDINGS)
    for array in [*whole.values(), *alone.values()]:
        compare(array, array, array, "gradients must be finite")
    sums = whole["weights"].sum(-1)
    assert set(sums.round(12).ravel()) == {0.0, 1.0}
    bias = module(MultiheadAttention).out_proj.bias.detach()
    rows = (sums == 0).all(1)
    assert rows.any() or name == "a_head"
    assert (whole["output"][rows] == numpy(bias)).all()


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, MultiheadAttention])
def test_padded_query_that_is_nan_reaches_the_gradients(kind):
    """As the page says: a query is no hidden key, so no clause speaks of it."""
    (x, *_), _ = call("batch_first", "none")
    x = x.masked_fill(PAD[..., None], torch.nan)
    attn = module(kind, batch_first=True)
    output = attn(x, x, x, key_padding_mask=PAD, need_weights=False)[0][~PAD]
    output.sum().backward()
    assert output.isfinite().all() == (kind is MultiheadAttention)
    assert attn.in_proj_weight.grad[:E].isnan().any()


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "output_alone"])
@pytest.mark.parametrize("mask", ["bool_padding", "float_padding"])
def test_nan_in_padding_reaches_nothing(mask, weights):
    inputs, options = call("other_features", mask)
    told = (CONFIGS["other_features"],)
    options |= {"need_weights": weights}
    clean = run(MultiheadAttention, torch.float32, inputs, *told, **options)
    dirty = [inputs[0], *(x.masked_fill(PAD.T[..., None], torch.nan) for x in inputs[1:])]
    results = run(MultiheadAttention, torch.float32, dirty, *told, **options)
    for name, right in clean.items():
        compare(results[name], right, right, name)


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "output_alone"])
@pytest.mark.parametrize("config", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_is_causal_hides_later_keys_whatever_stands_beside_it(config, weights):
    inputs, _ = call("self", "none")
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    told = {"config": config, "need_weights": weights}
    for others in ({}, {"key_padding_mask": PAD}, {"attn_mask": later}, {"attn_mask": BAND.T}):
        masks = {**others, "attn_mask": others.get("attn_mask", later) | later}
        exact = run(MultiheadAttention, torch.float64, inputs, **told, **masks)
        results = run(MultiheadAttention, torch.float64, inputs, **told, **others, is_causal=True)
        for name, right in exact.items():
            compare(results[name], right, right, f"{name} with {[*others]}", ROUNDINGS)


def test_dropout_drops_single_weights_in_training_alone():
    size, rate = 67, 0.4
    attn = MultiheadAttention(size, 1, dropout=rate, bias=False)
    with torch.no_grad():  # the output is the weights, all of them 1 / 67
        attn.in_proj_weight.copy_(torch.cat([torch.zeros(2 * size, size), torch.eye(size)]))
        attn.out_proj.weight.copy_(torch.eye(size))
    x = torch.eye(size)
    for weights in (True, False):
        torch.manual_seed(3)
        output, returned = attn(x, x, x, need_weights=weights)
        kept = output[output != 0] * size * (1 - rate)
        dropped = 1 - kept.numel() / size**2
        assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate)) / size
        torch.testing.assert_close(kept, torch.ones_like(kept))
        assert returned is None or (returned * size - 1).abs().max() < 1e-6
        assert not torch.equal(output, attn(x, x, x, need_weights=weights)[0])
    torch.testing.assert_close(attn.eval()(x, x, x)[0] * size, torch.ones(size, size))


# Inside torch's own layers


@pytest.fixture
def counted(monkeypatch):
    """Count the calls of this package's attention."""
    calls = []
    for name in ("attention", "attention_steps"):
        function = getattr(torch_nn, name)

        def count(*args, function=function, **options):
            calls.append(function)
            return function(*args, **options)

        monkeypatch.setattr(torch_nn, name, count)
    return calls


def pair(model):
    """Return torch's model and a copy with our attention."""
    return model, replace(copy.deepcopy(model))


def check_models(theirs, ours, inputs, places=None, **masks):
    """Check the outputs of two models against torch's in float64."""
    exact = copy.deepcopy(theirs).double()(*(x.double() for x in inputs), **masks)
    arrays = [numpy(x.detach()) for x in (ours(*inputs, **masks), exact, theirs(*inputs, **masks))]
    if places is not None:
        arrays = [x[numpy(places)] for x in arrays]
    compare(*arrays, "output", ROUNDINGS)


LAYER_MASKS = {
    "none": {},
    "padding": {"src_key_padding_mask": PAD},
    "causal": {"mask": nn.Transformer.generate_square_subsequent_mask(T)},
    "both": {"mask": BAND, "src_key_padding_mask": PAD},
    "left_padding": {"src_key_padding_mask": PAD.flip(1)},
}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mask", LAYER_MASKS)
def test_encoder_is_evaluated_as_torchs_is(counted, mask, norm_first):
    torch.manual_seed(0)
    options = {"batch_first": True, "norm_first": norm_first}
    layer = nn.TransformerEncoderLayer(E, H, 23, **options)
    nested = {"enable_nested_tensor": not norm_first}
    theirs, ours = pair(nn.TransformerEncoder(layer, 2, **nested).eval())
    x = normal(B, T, E, seed=1).float()
    for no_gradients in (True, False):  # without them torch calls no module, and nests the padded
        with torch.set_grad_enabled(not no_gradients):
            check_models(theirs, ours, [x], **LAYER_MASKS[mask])
    assert len(counted) == 4


def test_module_that_is_put_by_hand_is_called(counted):
    layer = nn.TransformerEncoderLayer(E, H, 23, batch_first=True).eval()
    x = normal(B, T, E, seed=1).float()
    with torch.no_grad():
        layer(x)
        assert not counted, "torch's layer calls torch's attention"
        layer.self_attn = MultiheadAttention(E, H, batch_first=True)
        layer.eval()(x)
    assert len(counted) == 1


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", LAYER_MASKS)
def test_encoder_is_trained_as_torchs_is(counted, mask, batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 23, dropout=0.0, batch_first=batch_first)
    models = pair(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    exact = copy.deepcopy(models[0]).double()
    x, target = normal(B, T, E, seed=1), normal(B, T, E, seed=2)
    if not batch_first:
        x, target = x.swapaxes(0, 1), target.swapaxes(0, 1)
    right, naive, losses = (
        train(model, x, target, LAYER_MASKS[mask]) for model in (exact, *models)
    )
    compare(losses, right, naive, "losses", ROUNDINGS)
    assert losses[-1] < 0.9 * losses[0]
    assert len(counted) == 8


def train(model, x, target, masks):
    """Return the losses of four steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight, losses = next(model.parameters()), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = mse_loss(model(x.to(weight), **masks), target.to(weight))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return numpy(torch.stack(losses))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_transformer_is_torchs(counted, training, batch_first):
    torch.manual_seed(0)
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 23}
    model = nn.Transformer(E, H, **sizes, dropout=0.0, batch_first=batch_first)
    theirs, ours = pair(model.train(training))
    src, tgt = normal(B, T, E, seed=1).float(), normal(B, S, E, seed=2).float()
    if not batch_first:
        src, tgt = src.swapaxes(0, 1), tgt.swapaxes(0, 1)
    masks = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(S),
        "src_key_padding_mask": PAD,
        "tgt_key_padding_mask": torch.arange(S) >= torch.tensor([S, 1, 4])[:, None],
        "memory_key_padding_mask": PAD,
        "memory_mask": torch.zeros(S, T, dtype=torch.bool),
        "tgt_is_causal": True,
    }
    with torch.set_grad_enabled(training):
        check_models(theirs, ours, [src, tgt], **masks)
    assert len(counted) == 6


def test_nested_tensor_gives_nested_what_padding_gives():
    samples = [normal(n, E, seed=n) for n in (5, 0, 3)]
    attn = module(MultiheadAttention, batch_first=True)
    nested = torch.nested.nested_tensor(samples, requires_grad=True)
    output, weights = attn(nested, nested, nested)
    assert output.is_nested and weights.shape == (3, 5, 5)
    output.to_padded_tensor(0.0).sum().backward()
    for sample, got, slope in zip(samples, output.unbind(), nested.grad.unbind(), strict=True):
        alone = sample.requires_grad_()
        right = attn(alone, alone, alone)[0]
        right.sum().backward()
        for name, a, b in (("output", got, right), ("gradient", slope, alone.grad)):
            compare(*(numpy(x.detach()) for x in (a, b, b)), name, ROUNDINGS)


# Weights, copies, graphs


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoints_go_both_ways(name):
    config = CONFIGS[name]
    theirs, ours = (kind(E, H, **config) for kind in (nn.MultiheadAttention, MultiheadAttention))
    assert [*theirs.state_dict()] == [*ours.state_dict()]
    assert vars(theirs).keys() == vars(ours).keys()
    for source, target in ((theirs, ours), (ours, theirs)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict())
        assert all(map(torch.equal, source.parameters(), target.parameters()))


def test_arguments_are_torchs():
    for name in ("__init__", "forward"):
        theirs, ours = (
            [(x.name, x.default, x.kind) for x in inspect.signature(function).parameters.values()]
            for function in (
                getattr(nn.MultiheadAttention, name),
                getattr(MultiheadAttention, name),
            )
        )
        assert ours == theirs
    torch.manual_seed(4)
    theirs = nn.MultiheadAttention(E, H, 0.1, False, True, True, 11, 3, True)
    torch.manual_seed(4)
    ours = MultiheadAttention(E, H, 0.1, False, True, True, 11, 3, True)
    assert all(map(torch.equal, theirs.parameters(), ours.parameters()))
    assert isinstance(ours, nn.MultiheadAttention)


def saved(attn):
    file = io.BytesIO()
    torch.save(attn, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, lambda attn: pickle.loads(pickle.dumps(attn)), saved]


@pytest.mark.parametrize("duplicate", COPIES, ids=["deepcopy", "pickle", "torch.save"])
def test_copies_compute_the_same_and_are_called(counted, duplicate):
    layer = replace(nn.TransformerEncoderLayer(E, H, 23, batch_first=True).eval())
    x = normal(B, T, E, seed=1).float()
    with torch.no_grad():
        assert torch.equal(duplicate(layer)(x), layer(x))
    assert len(counted) == 2


def test_replace_keeps_parameters_and_leaves_others_alone():
    class Other(nn.MultiheadAttention):
        pass

    model = nn.ModuleDict({"a": nn.Transformer(E, H, 1, 1, 23, batch_first=True), "b": Other(E, H)})
    before = [*model.parameters()]
    assert replace(model) is model and replace(model["a"]) is model["a"]
    assert all(x is y for x, y in zip(before, model.parameters(), strict=True))
    kinds = [type(x) for x in model.modules() if isinstance(x, nn.MultiheadAttention)]
    assert kinds == 3 * [MultiheadAttention] + [Other]
    assert all(len(x._forward_pre_hooks) < 2 for x in model.modules())
    with pytest.raises(ValueError, match=r"must hold a torch.nn.MultiheadAttention: got Other"):
        replace(model["b"])


def test_compiled_encoder_is_one_graph():
    torch._dynamo.reset()
    layer = nn.TransformerEncoderLayer(E, H, 23, dropout=0.0, batch_first=True)
    model = replace(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = normal(B, T, E, seed=1).float()
    both = LAYER_MASKS["both"] | {"is_causal": False}  # else torch looks at the mask's values
    for masks in (both, {"src_key_padding_mask": PAD}):
        right = model(x, **masks)
        compare(*(numpy(y.detach()) for y in (compiled(x, **masks), right, right)), "", ROUNDINGS)
    torch._dynamo.reset()


def test_exported_module_takes_every_batch_and_length():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = module(MultiheadAttention, torch.float32, add_bias_kv=True)

        def forward(self, x, hidden):
            return self.attn(x, x, x, hidden, False, is_causal=True)[0]

    model = Model().eval()
    length, batch = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    axes = {"x": {0: length, 1: batch}, "hidden": {0: batch, 1: length}}
    x = normal(T, B, E, seed=1).float()
    program = torch.export.export(model, (x, PAD), dynamic_shapes=axes).module()
    x, hidden = normal(9, 2, E, seed=2).float(), torch.arange(9) >= torch.tensor([9, 4])[:, None]
    arrays = [numpy(y.detach()) for y in (program(x, hidden), model(x, hidden))]
    compare(arrays[0], arrays[1], arrays[1], "output", ROUNDINGS)


# Refusals


X = torch.ones(T, B, E)
JAGGED = torch.nested.nested_tensor([torch.ones(2, E)], layout=torch.jagged)
SAME = "a nested tensor must be query, key and value at once, pad it where they differ"
STRIDED = "a nested tensor must be torch.strided, of samples (T, E), with batch_first=True"
REFUSED = {
    "key_of_one_sample": ((X, X[0], X), {}, ValueError, "key must be (S, B, E): got (3, 14)"),
    "value_of_a_batch": ((X[0], X[0], X), {}, ValueError, "value must be (S, E): got (5, 3, 14)"),
    "rank": ((X[None], X, X), {}, ValueError, "query must be (T, B, E): got (1, 5, 3, 14)"),
    "no_array": ((X.numpy(), X, X), {}, TypeError, "query must be an array: got numpy.ndarray"),
    "features": ((X[..., :9], X, X), {}, ValueError, "query must have 14 features: got 9"),
    "batch": (
        (X, X[:, :2], X[:, :2]),
        {},
        ValueError,
        "query, key and value must share a batch size: got 3, 2 and 2",
    ),
    "length": ((X, X, X[:4]), {}, ValueError, "key and value must share a length: got 5 and 4"),
    "dtype": (
        (X.double(), X, X),
        {},
        TypeError,
        "query must have the dtype of the weights, float32: got float64",
    ),
    "padding_of_integers": (
        (X, X, X),
        {"key_padding_mask": PAD.int()},
        TypeError,
        "key_padding_mask must be bool, True hides: got int32",
    ),
    "padding_is_transposed": (
        (X, X, X),
        {"key_padding_mask": PAD.T.double().float()},
        ValueError,
        "key_padding_mask must be (B, S) = (3, 5): got (5, 3)",
    ),
    "padding_of_a_batch": (
        (X[:, 0],) * 3,
        {"key_padding_mask": PAD},
        ValueError,
        "key_padding_mask must be (S): got (3, 5)",
    ),
    "padding_of_another_dtype": (
        (X, X, X),
        {"key_padding_mask": PAD.double()},
        TypeError,
        "key_padding_mask must be float32: got float64",
    ),
    "mask_of_heads": (
        (X, X, X),
        {"attn_mask": BAND.expand(B, T, T)},
        ValueError,
        "attn_mask must fit (B*H, T, S) = (6, 5, 5): got (3, 5, 5)",
    ),
    "a_mask": (
        (X, X, X),
        {"attn_mask": causal()},
        TypeError,
        "attn_mask must be an array, attn_torch.MultiHeadAttention takes a Mask: got Mask",
    ),
    "causal_cross": (
        (X, X[:4], X[:4]),
        {"is_causal": True},
        ValueError,
        "is_causal needs T = S, give an attn_mask that says which keys come later: "
        "got T = 5 and S = 4",
    ),
    "nested_keys": ((X, JAGGED, JAGGED), {}, ValueError, f"{SAME}: got others beside it"),
    "jagged": (
        (JAGGED,) * 3,
        {},
        ValueError,
        f"{STRIDED}: got torch.jagged, 3 axes, batch_first=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_call_is_refused_in_words(name):
    inputs, options, kind, text = REFUSED[name]
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        MultiheadAttention(E, H)(*inputs, **options)


def test_nested_tensor_takes_no_mask():
    nested = torch.nested.nested_tensor([torch.ones(2, E)])
    text = "attn_mask must be None beside a nested tensor, which says where samples end"
    with pytest.raises(ValueError, match=f"^{text}: got bool array$"):
        MultiheadAttention(E, H, batch_first=True)(nested, nested, nested, attn_mask=BAND)


def test_call_inside_shard_sequences_is_refused(monkeypatch):
    monkeypatch.setattr(torch_nn, "current_shards", lambda: object())
    text = "this module knows no shards of sequences, leave shard_sequences first"
    with pytest.raises(RuntimeError, match=f"^{text}: got a call inside$"):
        MultiheadAttention(E, H)(X, X, X)


# The page


def test_page_runs():
    page = (ROOT / "docs/torch-nn.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 1
    names: dict = {}
    for block in blocks:
        exec(block, names)
