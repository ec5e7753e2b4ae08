"""What stands in the place of a projection: wrapped, quantised, or of another width."""

import copy
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, prune

import attn_jax
import attn_numpy
import attn_torch
from attn_torch import MultiHeadAttention, Seq2SeqTransformer, TransformerEncoderLayer
from conformance.subjects import load

pytestmark = pytest.mark.usefixtures("compiles_quickly")
MODULES = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
TOKENS = {"d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
X = np.random.default_rng(3).normal(size=(2, 7, 16)).astype(np.float32)


def new(backend: str, name: str, *sizes, **options):
    """Return the backend's module, its adapter, and a new model in evaluation mode."""
    if backend == "jax":
        options["rngs"] = nnx.Rngs(0)
    elif backend == "numpy":
        options["rng"] = np.random.default_rng(0)
    torch.manual_seed(0)
    model = getattr(MODULES[backend], name)(*sizes, **options)
    model.eval()
    return MODULES[backend], load(backend, "cpu"), model


def around(backend: str):
    """Return what puts itself round a map, as adapters do."""
    return load(backend, "cpu").wrap


def packed(backend: str):
    """Return the same with integers for a weight, as 4-bit layers hold it."""
    return lambda inner: around(backend)(inner, np.zeros(1, np.uint8))


class NumpyPlain:
    """Nothing that the project knows."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x):
        return self.inner(x)


def lora(inner):
    (inputs, outputs), dtype = inner.kernel.shape, inner.kernel.dtype
    options = {"base_module": inner, "param_dtype": dtype, "rngs": nnx.Rngs(1)}
    return nnx.LoRA(inputs, 3, outputs, **options)


KINDS = {
    "torch": [around("torch"), packed("torch"), parametrizations.weight_norm],
    "jax": [around("jax"), packed("jax"), lora],
    "numpy": [around("numpy"), packed("numpy"), NumpyPlain],
}
CASES = [(backend, how) for backend, kinds in KINDS.items() for how in kinds]
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}


def attentions(model):
    names = ("self_attn", "multihead_attn")
    parts = getattr(model, "layers", [model])
    found = [getattr(part, name) for part in parts for name in names if hasattr(part, name)]
    return found or [model]


def wrap(model, how):
    for attn in attentions(model):
        for name in PROJECTIONS:
            setattr(attn, name, how(getattr(attn, name)))


def decoded(subject, step, x, cache):
    """Decode a prompt, a step with a hidden token, and a chunk."""
    outputs = []
    hidden = subject.array(np.array([[False], [True]]))
    for part, more in ((slice(0, 3), {}), (slice(3, 4), {"hidden": hidden}), (slice(4, 7), {})):
        output, cache = step(subject.array(x[:, part]), cache, **more)
        outputs.append(subject.numpy(output))
    return np.concatenate(outputs, 1), cache


@pytest.mark.parametrize(("backend", "how"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrapped_attention_gives_the_same(backend, how, dtype):
    kind = {"torch": getattr(torch, dtype)}.get(backend, DTYPES[dtype])
    _, subject, attn = new(backend, "MultiHeadAttention", 16, 2, num_kv_heads=1, dtype=kind)
    x = X.astype(DTYPES[dtype])
    expected = subject.numpy(attn(subject.array(x))[0])
    steps, cache = decoded(subject, attn.decode, x, attn.new_cache(2, 9))
    wrap(attn, how)
    same = {"atol": 0 if dtype == "float32" else 0.05, "rtol": 0}
    same["atol"] += 1e-6 if how in (parametrizations.weight_norm,) else 0  # scales and divides
    got = subject.numpy(attn(subject.array(x))[0])
    np.testing.assert_allclose(got.astype(float), expected.astype(float), **same)
    if how is NumpyPlain and dtype != "float32":  # nobody can know what it holds
        made = attn_numpy.KVCache.empty(2, 1, 9, 8, dtype=kind)
        with pytest.raises(TypeError, match="cache must have the dtype of the weights, bfloat16"):
            attn.decode(subject.array(x), attn.new_cache(2, 9))
    else:
        made = attn.new_cache(2, 9)
    assert made.key.dtype == cache.key.dtype
    got, made = decoded(subject, attn.decode, x, made)
    np.testing.assert_allclose(got.astype(float), steps.astype(float), **same)
    assert made.lengths.tolist() == [7, 6]
    attn(subject.array(x), attn.project(subject.array(x)))


@pytest.mark.parametrize(("backend", "how"), CASES)
def test_wrapped_stack_gives_the_same(backend, how):
    _, subject, encoder = new(backend, "TransformerEncoder", 2, 16, 2, 24, norm_first=True)
    same = {"atol": 1e-5, "rtol": 0}
    expected = subject.numpy(encoder(subject.array(X)))
    steps, _ = decoded(subject, encoder.decode, X, encoder.start(2, 9))
    wrap(encoder, how)
    for layer in encoder.layers:
        layer.linear1, layer.linear2 = how(layer.linear1), how(layer.linear2)
    np.testing.assert_allclose(subject.numpy(encoder(subject.array(X))), expected, **same)
    got, _ = decoded(subject, encoder.decode, X, encoder.start(2, 9))
    np.testing.assert_allclose(got, steps, **same)


@pytest.mark.parametrize(("backend", "how"), CASES)
@pytest.mark.parametrize("cached", [True, False])
def test_wrapped_model_decodes_the_same_tokens(backend, how, cached):
    module, subject, model = new(backend, "Seq2SeqTransformer", 11, 13, **TOKENS)
    src, prompt = (subject.array(np.array(t)) for t in ([[5, 3], [4, 0]], [[1, 4], [1, 0]]))
    options = {"eos_idx": 2, "max_new_tokens": 5, "cached": cached}
    expected = subject.numpy(module.greedy_decode(model, src, prompt, **options))
    wrap(model.transformer.encoder, how)
    wrap(model.transformer.decoder, how)
    model.projection = how(model.projection)
    got = subject.numpy(module.greedy_decode(model, src, prompt, **options))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("backend", MODULES)
def test_one_float_weight_is_a_rule(backend):
    _, subject, attn = new(backend, "MultiHeadAttention", 16, 2)
    attn.q_proj = KINDS[backend][0](attn.q_proj)
    x = subject.array(X.astype(np.float16))
    with pytest.raises(TypeError, match="query must have the dtype of the weights, float32"):
        attn(x)
    with pytest.raises(TypeError, match="query must be an array: got list"):
        attn(X.tolist())
    wrap(attn, KINDS[backend][0])
    with pytest.raises(TypeError, match="query must be an array: got list"):
        attn(X.tolist())
    with pytest.raises(TypeError, match="key must have the dtype of the weights, float32"):
        attn(subject.array(X), x)


def quantized(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is going to move to a package of its own
        return quantize_dynamic(model, {nn.Linear})


def test_quantised_models_are_quantised_and_run():
    x = torch.from_numpy(X)
    _, _, attn = new("torch", "MultiHeadAttention", 16, 2)
    _, _, encoder = new("torch", "TransformerEncoder", 2, 16, 2, 24)
    ways = ((attn, "new_cache", "attn_mask"), (encoder, "start", "mask"))
    for model, start, mask in ways:
        small = quantized(model)
        kinds = {type(part) for part in small.modules()}
        assert nn.Linear not in kinds
        assert torch.ao.nn.quantized.dynamic.Linear in kinds
        found = model(x), small(x), small(x, **{mask: attn_torch.causal()})
        full, got, one = (y if isinstance(y, torch.Tensor) else y[0] for y in found)
        assert 0 < (got - full).abs().max() < 0.1  # 8 bits
        steps, _ = small.decode(x, getattr(small, start)(2, 9))
        torch.testing.assert_close(steps, one, atol=1e-5, rtol=0)


def test_quantised_model_decodes_tokens():
    _, _, model = new("torch", "Seq2SeqTransformer", 11, 13, **TOKENS)
    small = quantized(model)
    src, prompt = torch.tensor([[5, 3], [4, 0]]), torch.tensor([[1, 4], [1, 0]])
    for cached in (True, False):
        options = {"eos_idx": 2, "max_new_tokens": 5, "cached": cached}
        got = attn_torch.greedy_decode(small, src, prompt, **options)
        expected = attn_torch.greedy_decode(model, src, prompt, **options)
        assert torch.equal(got[:, 0], expected[:, 0])  # later ones may be ties of 8 bits
    assert 0 < (small(src, prompt) - model(src, prompt)).abs().max() < 0.1


def test_pruned_attention_decodes():
    _, _, attn = new("torch", "MultiHeadAttention", 16, 2)
    for name in PROJECTIONS:
        prune.l1_unstructured(getattr(attn, name), "weight", 0.3)
    x = torch.from_numpy(X)
    expected, _ = attn(x, attn_mask=attn_torch.causal())
    got, _ = attn.decode(x, attn.new_cache(2, 7))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def narrow(backend: str, inputs: int, outputs: int):
    if backend == "torch":
        return nn.Linear(inputs, outputs)
    if backend == "jax":
        return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))
    return attn_numpy.layers.Linear(inputs, outputs)


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("features", [1, 8, 17, 32])
def test_sizes_that_the_configuration_knows_are_never_inferred(backend, features):
    _, subject, attn = new(backend, "MultiHeadAttention", 16, 4, num_kv_heads=2)
    x = subject.array(X)
    for name, rule in (("q_proj", "4 heads of 4"), ("k_proj", "2 heads of 4")):
        if features == 8 and name == "k_proj":
            continue  # its own width
        kept = getattr(attn, name)
        setattr(attn, name, narrow(backend, 16, features))
        for call in (
            lambda: attn(x, need_weights=False),
            lambda: attn.decode(x, attn.new_cache(2, 7)),
        ):
            with pytest.raises(ValueError, match=f"a projection must give {rule} features"):
                call()
        setattr(attn, name, kept)
    attn.out_proj = narrow(backend, 16, features)
    rule = rf"out_proj must give \(2, 7, 16\): got \(2, 7, {features}\)"
    for call in (lambda: attn(x), lambda: attn.decode(x, attn.new_cache(2, 7))):
        with pytest.raises(ValueError, match=rule):
            call()


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("features", [1, 8, 17])
@pytest.mark.parametrize("norm_first", [True, False])
def test_no_residual_is_broadcast(backend, features, norm_first):
    name = "TransformerEncoderLayer"
    _, subject, layer = new(backend, name, 16, 2, 24, norm_first=norm_first)
    layer.linear2 = narrow(backend, 24, features)
    with pytest.raises(ValueError, match=rf"linear2 must give \(2, 7, 16\).*7, {features}\)"):
        layer(subject.array(X))
    with pytest.raises(ValueError, match=rf"linear2 must give \(2, 7, 16\).*7, {features}\)"):
        layer.decode(subject.array(X), layer.self_attn.new_cache(2, 7))


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("vocabulary", [1, 12, 14])
def test_logits_are_those_of_the_vocabulary(backend, vocabulary):
    module, subject, model = new(backend, "Seq2SeqTransformer", 11, 13, **TOKENS)
    model.projection = narrow(backend, 16, vocabulary)
    src, prompt = (subject.array(np.array(t)) for t in ([[5, 3], [4, 0]], [[1, 4], [1, 0]]))
    rule = rf"projection must give \(2, ., 13\): got \(2, ., {vocabulary}\)"  # JAX pads
    with pytest.raises(ValueError, match=rule):
        model(src, prompt)
    for cached in (True, False):
        with pytest.raises(ValueError, match=rule):
            module.greedy_decode(model, src, prompt, eos_idx=2, max_new_tokens=5, cached=cached)


def late(model):
    """Return a model built without values, and started as tools start those."""
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1e9)
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return model


def test_attention_that_is_started_later_is_the_papers():
    attn = late(MultiHeadAttention(61, 1, kdim=31, device="meta"))
    for name, inputs in zip(PROJECTIONS, (61, 31, 61, 61), strict=True):
        part = getattr(attn, name)
        assert type(part) is nn.Linear
        assert (part.bias == 0).all()
        bound = (6 / (inputs + 61)) ** 0.5
        assert 0.98 * bound < part.weight.abs().max() <= bound
        assert abs(part.weight.std() / (bound / 3**0.5) - 1) < 0.05


@pytest.mark.parametrize("positions", ["sinusoidal", "none"])
def test_models_that_are_started_later_start_alike(positions):
    build = {**TOKENS, "d_model": 64, "positions": positions, "padding_idx": 3}
    at_once = Seq2SeqTransformer(211, 223, **build)
    model = late(Seq2SeqTransformer(211, 223, **build, device="meta"))
    for (name, ours), theirs in zip(model.named_parameters(), at_once.parameters(), strict=True):
        if theirs.std() == 0:  # biases, and the weights of norms
            assert torch.equal(ours, theirs), name
        else:
            assert torch.allclose(ours.std(), theirs.std(), rtol=0.1), name
    assert (model.src_embedding.weight[3] == 0).all()


def test_copies_start_themselves():
    first = TransformerEncoderLayer(16, 2, 24)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        late(other)
        assert not torch.equal(other.linear1.weight, first.linear1.weight)
        assert other.linear1.weight.abs().max() < 1
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_nothing_keeps_a_map_alive():
    import gc
    import weakref

    attn = MultiHeadAttention(16, 2)
    gc.disable()
    try:
        held = weakref.ref(attn.q_proj)
        del attn
        assert held() is None
    finally:
        gc.enable()
