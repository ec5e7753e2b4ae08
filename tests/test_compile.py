"""torch.compile over attention and MultiHeadAttention: one graph, whatever the mask."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import attn_torch
from conformance.cases.attention import SQUARE, Case
from conformance.cases.compare import check_gradients, check_output
from conformance.cases.multihead import SELF
from conformance.mask_spec import causal, padding, sliding_window
from conformance.oracle.reference import allowed
from conformance.subjects.attn_torch import Adapter

pytestmark = pytest.mark.usefixtures("_fresh")


@pytest.fixture
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compiled(Adapter):
    """The adapter of the suite, with everything compiled but for code generation."""

    def __init__(self):
        super().__init__()
        self.backend = CompileCounterWithBackend("aot_eager")
        self.compiling = {"backend": self.backend, "fullgraph": True}

    def path(self, through, tile=None):
        assert through == "attention"
        return torch.compile(attn_torch.attention, **self.compiling)

    def attention(self, query, key, value, **options):
        arrays = (self.array(x) for x in (query, key, value))
        return self.numpy(self.path("attention")(*arrays, **self.options(options)))

    def module_with(self, *arguments, **options):
        attn = super().module_with(*arguments, **options)
        attn.compile(**self.compiling)
        return attn


LENGTHS = [5, 0, 3]
HIDDEN = np.arange(5) >= np.array(LENGTHS)[:, None]  # (B, S)
FUTURE = ~np.tri(5, dtype=bool)
MASKS = {
    "none": ({}, None),
    "causal": ({"attn_mask": causal()}, causal()),
    "padding": ({"key_padding_mask": HIDDEN}, padding(LENGTHS)),
    "both": ({"attn_mask": causal(), "key_padding_mask": HIDDEN}, causal() & padding(LENGTHS)),
    "bool": ({"attn_mask": FUTURE}, causal()),
    "added": ({"attn_mask": np.where(FUTURE, -np.inf, 0).astype(np.float32)}, causal()),
    "not_window": ({"attn_mask": ~sliding_window(1)}, ~sliding_window(1)),
}


def options_and_seen(name: str) -> tuple[dict, np.ndarray]:
    options, mask = MASKS[name]
    return options, allowed(mask, (3, 2, 5, 5), 0)


@pytest.mark.parametrize("name", MASKS)
def test_multihead_with_weights_is_one_graph(name):
    subject = Compiled()
    SELF.check(subject, *options_and_seen(name))
    assert subject.backend.frame_count == 1


@pytest.mark.parametrize("name", MASKS)
def test_multihead_without_weights_is_one_graph(name):
    subject, (options, allowed) = Compiled(), options_and_seen(name)
    SELF.check(subject, options, allowed, need_weights=False)
    assert subject.backend.frame_count == 1


@pytest.mark.parametrize(
    ("name", "need_weights"),
    [("causal", False), ("both", True), ("both", False), ("added", False)],
)
def test_compiled_gradients_are_the_oracles(name, need_weights):
    subject, (options, allowed) = Compiled(), options_and_seen(name)
    SELF.check_gradients(subject, options | {"need_weights": need_weights}, allowed)
    assert subject.backend.frame_count


def test_new_padding_compiles_nothing_anew():
    attn = attn_torch.MultiHeadAttention(14, 2)
    subject = Compiled()
    attn.compile(**subject.compiling)
    x, eager = torch.from_numpy(SELF.inputs()[0]), attn_torch.MultiHeadAttention(14, 2)
    eager.load_state_dict(attn.state_dict())
    for lengths in ([5, 0, 3], [1, 2, 5]):
        hidden = torch.arange(5) >= torch.tensor(lengths)[:, None]
        torch.testing.assert_close(
            attn(x, key_padding_mask=hidden)[0], eager(x, key_padding_mask=hidden)[0]
        )
    assert subject.backend.frame_count == 1


CASES = [
    Case("plain", SQUARE._replace(D_v=11)),
    Case("causal", SQUARE._replace(D_v=11), causal()),
    Case("negative", SQUARE._replace(D_v=11), causal(), scale=-0.5),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_attention_by_the_kernel_is_one_graph(case):
    subject, inputs = Compiled(), case.inputs("float32")
    got = subject.attention(*inputs, **case.options("float32"))
    check_output(got, *inputs, "compiled output", allowed=case.allowed(), **case.numbers("float32"))
    check_gradients(subject, case)
    assert subject.backend.frame_count == 2  # with and without gradients


# Heads that are processed


HEADS = {
    "rotary": lambda: attn_torch.rotary(interleaved=True),
    "normed": lambda: attn_torch.QKNorm(6, attn_torch.rotary(base=500.0, dim=4)),
}


def processed(name: str) -> attn_torch.MultiHeadAttention:
    torch.manual_seed(0)
    attn = attn_torch.MultiHeadAttention(
        16, 4, num_kv_heads=2, head_dim=6, sinks=True, process_heads=HEADS[name]()
    )
    with torch.no_grad():  # else norms are 1, and sinks 0
        for parameter in attn.parameters():
            parameter += torch.randn(parameter.shape) / 4
    return attn


@pytest.mark.parametrize("name", HEADS)
def test_processed_heads_are_one_graph_and_another_for_every_length(name):
    attn, eager = processed(name), processed(name)
    subject, counts = Compiled(), []
    attn.compile(**subject.compiling)
    for length in (5, 7, 11):
        x = torch.randn(3, length, 16)
        for model in (attn, eager):
            output, weights = model(x, attn_mask=attn_torch.causal())
            (output.sin().sum() + weights.square().sum()).backward()
        torch.testing.assert_close(*(m(x, attn_mask=attn_torch.causal()) for m in (attn, eager)))
        counts.append(subject.backend.frame_count)
    assert counts == [1, 2, 2]
    for got, wanted in zip(attn.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, atol=1e-4, rtol=1e-5)
