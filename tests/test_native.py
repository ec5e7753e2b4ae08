"""Adapters in arrays of torch or JAX: what they are given, and what is taken of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from conformance.cases.arrays import normal
from conformance.cases.attention import BY_NAME, PLAIN, Case
from conformance.cases.compare import check_gradients, check_steps
from conformance.mask_spec import padding
from conformance.oracle.tolerance import Differs, compare, dtype
from conformance.subjects.adapter import Plugged
from conformance.subjects.native import native
from conformance.subjects.protocol import NotOffered

FRAMEWORKS = {
    "torch": SimpleNamespace(array=torch.Tensor, where=torch.where, exp=torch.exp, any=torch.any),
    "jax": SimpleNamespace(array=jax.Array, where=jnp.where, exp=jnp.exp, any=jnp.any),
}
DTYPES = ("float64", "float32", "float16", "bfloat16")
RAGGED = BY_NAME["causal_and_padding"]


class Formula:
    """The formula, in either framework, each tensor in the dtype of the call."""

    mask_polarity = "attend"
    capabilities = frozenset({"attention", "weights", "bias", "scale", "sinks", "gradients"})
    dtypes = DTYPES

    def __init__(self, arrays: str, **settings):
        self.arrays, self.xp = arrays, FRAMEWORKS[arrays]
        vars(self).update(settings)

    def attention(self, *inputs, **options):
        return self.weights(*inputs, **options)[0]

    def weights(self, query, key, value, *, mask=None, bias=None, scale=None, sinks=None):
        self.given = query, key, value, mask
        dtype, up = query.dtype, (lambda x: x)
        if query.itemsize == 2:
            up = torch.Tensor.float if self.arrays == "torch" else jnp.float32
        query, key, value = map(up, (query, key, value))
        scale = query.shape[3] ** -0.5 if scale is None else scale
        scores = query @ key.swapaxes(2, 3) * scale + (0 if bias is None else up(bias))
        mask = scores == scores if mask is None else mask
        top = self.xp.where(mask, scores, -1e30).max(-1)
        top = (top[0] if self.arrays == "torch" else top)[..., None]
        weights = self.xp.where(mask, self.xp.exp(self.xp.where(mask, scores, top) - top), 0)
        total = weights.sum(-1)[..., None]
        total = total if sinks is None else total + self.xp.exp(up(sinks)[:, None, None] - top)
        weights = weights / self.xp.where(total > 0, total, 1)
        output = weights @ value
        return (output.to(dtype) if self.arrays == "torch" else output.astype(dtype)), weights


@pytest.fixture(params=FRAMEWORKS)
def framework(request) -> str:
    return request.param


def plugged(framework: str, **settings) -> Plugged:
    return Plugged(Formula(framework, **settings), "mine")


# What an adapter is given


@pytest.mark.parametrize("kind", DTYPES)
def test_array_goes_there_and_back_to_the_bit(framework, kind):
    array = normal(3, 5, 2, 7, dtype_name=kind)[::-1, :, ::2]
    array[0, 0, 0] = np.nan
    arrays = native(framework)
    with arrays.scope(kind):
        crossed = arrays.array(array)
        assert isinstance(crossed, FRAMEWORKS[framework].array)
        assert str(crossed.dtype).rpartition(".")[2] == kind
        back = arrays.take(crossed)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("kind", DTYPES)
def test_adapter_is_given_the_frameworks_arrays_and_conforms(framework, kind):
    subject = plugged(framework)
    for case in (PLAIN, RAGGED, Case("options", bias="rank4", scale=0.3, sinks="normal")):
        check_steps(subject, case, kind)
        query, *others = [x for x in subject.adapter.given if x is not None]
        assert all(isinstance(x, FRAMEWORKS[framework].array) for x in (query, *others))
        assert str(query.dtype).rpartition(".")[2] == kind
        if case is RAGGED:
            assert str(others[-1].dtype).rpartition(".")[2].startswith("bool")


def test_tensor_lies_as_the_array_does():
    subject, case = plugged("torch"), PLAIN
    inputs = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in case.inputs("float32")]
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    compare(subject.attention(*inputs), exact, naive, "output")
    assert not any(x.is_contiguous() for x in subject.adapter.given[:3])


def test_answer_may_use_its_tensor_again(framework):
    kept = constant(framework)
    subject = plugged(framework, attention=lambda *inputs: kept)
    first = subject.attention(*PLAIN.inputs("float32"))
    if framework == "torch":
        kept += 1
    np.testing.assert_array_equal(first, 1)
    assert first.flags.writeable


def test_array_that_is_given_twice_is_one(framework):
    subject, same = plugged(framework), normal(0, 3, 2, 5, 11, dtype_name="float32")
    subject.attention(same, same, same)
    query, key, value, _ = subject.adapter.given
    assert query is key is value


# Gradients


CASES = {
    "ragged": RAGGED,
    "empty": Case("empty", mask=padding([7, 0, 4])),
    "options": Case("options", bias="rank2", scale=0.3, sinks="normal"),
}


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_come_from_autograd_where_no_method_returns_them(framework, case, kind):
    assert not hasattr(Formula, "gradients")
    check_gradients(plugged(framework), CASES[case], kind)


def test_gradients_that_an_adapter_returns_are_its_own(framework):
    def gradients(query, key, value, grad, **options):
        return {"query": 2 * query, "key": key, "value": value}

    subject, (query, *others) = plugged(framework, gradients=gradients), PLAIN.inputs("float32")
    found = subject.gradients(query, *others, PLAIN.grad("float32"))
    np.testing.assert_array_equal(found["query"], 2 * query)


def test_modules_gradients_come_from_autograd_by_parameters_too(framework):
    def multihead(config, parameters, query, key, value, *, training=False, seed=None, **options):
        assert options == {"need_weights": False, "average_weights": True}
        return (query + 2 * key) @ parameters["q_proj.weight"] * (3 if training else 1), None

    settings = {"capabilities": {"multihead", "gradients"}, "multihead": multihead}
    subject, x = plugged(framework, **settings), normal(0, 3, 5, 6)
    parameters, grad = {"q_proj.weight": normal(1, 6, 6)}, normal(2, 3, 5, 6)
    config, inputs = {"embed_dim": 6, "num_heads": 2}, (x, normal(3, 3, 5, 6), x)
    found = subject.multihead_gradients(config, parameters, *inputs, grad)
    assert set(found) == {"query", "key", "value", "q_proj.weight"}
    wanted = grad @ parameters["q_proj.weight"].T
    np.testing.assert_allclose(found["key"], 2 * wanted, rtol=1e-12)
    np.testing.assert_array_equal(found["value"], 0)
    both = np.einsum("bte,btf->ef", x + 2 * inputs[1], grad)
    np.testing.assert_allclose(found["q_proj.weight"], both, rtol=1e-12)
    training = subject.multihead_gradients(config, parameters, *inputs, grad, training=True, seed=1)
    np.testing.assert_allclose(training["key"], 6 * wanted, rtol=1e-12)


def test_adapter_without_a_module_has_no_gradients_of_one(framework):
    with pytest.raises(NotOffered, match="does not offer gradients of multi-head attention"):
        plugged(framework).multihead_gradients({}, {}, *PLAIN.inputs("float32"), None)


def constant(framework: str, shape=(3, 2, 5, 13), kind: str = "float32"):
    return native(framework).array(np.ones(shape, dtype(kind)))


@pytest.mark.parametrize("framework", ["torch"])  # in JAX the gradient of a constant is 0
def test_output_without_a_graph_is_told(framework):
    subject = plugged(framework, attention=lambda *inputs: constant(framework))
    words = r"must come from autograd \(else write `gradients`\): got a tensor without a grad_fn$"
    with pytest.raises(Differs, match=words):
        subject.gradients(*PLAIN.inputs("float32"), PLAIN.grad("float32"))


# What is taken of an adapter

NAMES = {"torch": "a tensor of torch", "jax": "an array of jax"}


@pytest.mark.parametrize("kind", ["numpy", "other", "list", "none"])
def test_answer_of_another_kind_differs_in_words(framework, kind):
    other = constant("jax" if framework == "torch" else "torch")
    numpy = np.ones((3, 2, 5, 13), np.float32)
    answer = {"numpy": numpy, "other": other, "list": numpy.tolist(), "none": None}[kind]
    subject = plugged(framework, attention=lambda *inputs: answer)
    with pytest.raises(Differs) as raised:
        subject.attention(*PLAIN.inputs("float32"))
    text = f"an answer must be {NAMES[framework]}: got {type(answer).__name__}"
    assert str(raised.value) == text


def test_answer_on_another_device_differs_in_words():
    subject = plugged("torch", attention=lambda *inputs: torch.ones(3, 2, 5, 13, device="meta"))
    with pytest.raises(Differs, match=r"^an answer must be on cpu: got one on meta$"):
        subject.attention(*PLAIN.inputs("float32"))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_answer_of_another_dtype_differs_in_words(framework, kind):
    with native(framework).scope(kind):
        answer = constant(framework, kind=kind)
    settings = {"capabilities": {"attention"}, "attention": lambda *inputs: answer}
    with pytest.raises(Differs, match=f"expected float32, got {kind}"):
        check_steps(plugged(framework, **settings), PLAIN, "float32")


@pytest.mark.parametrize(
    ("shape", "kind"), [((3, 2, 5, 12), "float32"), ((3, 2, 5, 13), "float16")]
)
def test_output_that_does_not_fit_its_gradient_differs_in_words(framework, shape, kind):
    def attention(query, key, value):
        return getattr(query.sum() * constant(framework, shape), cast)(getattr(own, kind))

    own, cast = {"torch": (torch, "to"), "jax": (jnp, "astype")}[framework]
    got = f"{'torch.' if framework == 'torch' else ''}{kind} of shape {shape}"
    with pytest.raises(Differs) as raised:
        plugged(framework, attention=attention).gradients(
            *PLAIN.inputs("float32"), PLAIN.grad("float32")
        )
    assert str(raised.value).startswith("an output to differentiate must be ")
    assert str(raised.value).endswith(f"float32 of shape (3, 2, 5, 13): got {got}")


@pytest.mark.parametrize("name", ["query", "mask"])
def test_tensor_that_is_written_to_is_told_at_once(name):
    def spoil(query, key, value, mask):
        {"query": query, "mask": mask}[name][2, 1, 3] = 0
        return query @ key.mT @ value

    subject = plugged("torch", attention=spoil)
    with pytest.raises(Differs, match=f"^your function changed its input `{name}` in place at"):
        subject.attention(*RAGGED.inputs("float32"), **RAGGED.options("float32"))


@pytest.mark.parametrize("name", ["cupy", "tensorflow", ["torch"], None])
def test_framework_that_is_not_known_is_refused(name):
    with pytest.raises(ValueError, match=r"^`arrays` must be one of numpy, torch, jax: got "):
        Plugged(SimpleNamespace(arrays=name), "mine")


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_device_that_is_not_there_is_refused_at_once(framework, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises((RuntimeError, AssertionError)):
        Plugged(Formula(framework), "mine", device)
