"""Attention in graphs: what eager calls tell by a look at values, graphs tell by arithmetic.

`torch.compile` without breaks, `torch.export` with lengths not known, `torch.jit.trace` and ONNX.
"""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from attn_torch import (
    MultiHeadAttention,
    QKNorm,
    TransformerEncoder,
    allow,
    attention,
    attention_steps,
    causal,
    padding,
    predicate,
    prefix,
    rotary,
    segments,
    sliding_window,
)

pytestmark = [
    pytest.mark.usefixtures("_fresh"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace"),
    pytest.mark.filterwarnings("ignore:.*:torch.jit.TracerWarning"),  # sizes are looked at
]


@pytest.fixture
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(queries, keys, width=8, value_width=5):
    return (
        normal(3, 4, queries, width, seed=1),
        normal(3, 2, keys, width, seed=2),
        normal(3, 2, keys, value_width, seed=3),
    )


def ids(n, keys):
    return torch.arange(keys)[None] // (n[:, None] + 1)


def cells(n, queries, keys):
    sums = torch.arange(queries)[:, None] + torch.arange(keys)
    return sums[None, None] % (2 + n[:, None, None, None]) == 0


MASKS = {
    "none": lambda n, queries, keys: None,
    "causal": lambda n, queries, keys: causal(),
    "window": lambda n, queries, keys: sliding_window(2, 1),
    "padding": lambda n, queries, keys: padding(n),
    "padding_of_a_list": lambda n, queries, keys: padding([2, 0, 3]),
    "hidden": lambda n, queries, keys: padding(hidden=torch.arange(keys) >= n[:, None]),
    "prefix": lambda n, queries, keys: prefix(n),
    "packed": lambda n, queries, keys: segments(ids(n, keys)) & causal(),
    "cells": lambda n, queries, keys: allow(cells(n, queries, keys)),
    "predicate": lambda n, queries, keys: predicate(lambda b, h, q, k: (q + k + h) % 3 > 0),
    "either": lambda n, queries, keys: sliding_window(1) | padding(n),
}


OFFSETS = torch.tensor([3, -2, 0])
LENGTHS = {"causal_square": ("causal", None)} | {name: (name, OFFSETS) for name in MASKS}


@pytest.mark.parametrize("case", LENGTHS)
def test_new_lengths_compile_nothing_after_the_second(case):
    name, offset = LENGTHS[case]

    def call(query, key, value, n, offset):
        mask = MASKS[name](n, query.shape[2], key.shape[2])
        return attention(query, key, value, mask=mask, query_offset=offset)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    for queries, keys in ((7, 11), (5, 13), (9, 17), (131, 139)):
        arrays, n = inputs(keys if offset is None else queries, keys), torch.tensor([keys, 0, 3])
        expected = call(*arrays, n, offset)
        torch.testing.assert_close(compiled(*arrays, n, offset), expected, atol=2e-6, rtol=1e-5)
    assert counter.frame_count == 2  # one for the first lengths, one for all others


def spoil(name, arrays):
    """Return queries, keys and values with numbers of which softmax makes NaN somewhere."""
    query, key, value = (array.clone() for array in arrays)
    if name == "not_finite":
        key[0, 1, 3, 2], value[2, 0, 0, 1], key[1, 0, 4] = torch.nan, torch.inf, -torch.inf
    elif name == "all_overflow":
        query, key = query.abs() * 1e25, key.abs() * -1e25
    elif name == "one_is_left":
        query, key = query.abs() * 1e25, key.abs() * -1e25
        key[:, :, 2] = 0
    elif name == "inf_minus_inf":
        query[:, :, 2] *= 1e25
        key = key * 1e25
    return query, key, value


SPOILT = ["healthy", "not_finite", "all_overflow", "one_is_left", "inf_minus_inf"]
BIASES = {
    "no_bias": None,
    "bias": normal(7, 7, seed=5).where(torch.arange(7) != 3, -torch.inf),
    "lowest": torch.full((3, 1, 1, 7), torch.finfo(torch.float32).min),
}


ROWS = {"none": "zero", "causal": "zero", "padding": "uniform", "hidden": "nan", "cells": "zero"}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", ROWS)
def test_graphs_make_nan_where_the_textbook_does(name, bias):
    mask = MASKS[name](torch.tensor([5, 0, 7]), 7, 7)
    options = {"mask": mask, "bias": BIASES[bias], "empty_rows": ROWS[name]}
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    for spoilt in SPOILT:
        arrays = spoil(spoilt, inputs(7, 7))
        got = compiled(*arrays, **options)
        expected = attention_steps(*arrays, **options).output
        torch.testing.assert_close(got, expected, equal_nan=True, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("fill", [-1e4, -1e9, -3e38, torch.finfo(torch.float32).min, 1e6])
@pytest.mark.parametrize("sinks", [None, (-torch.inf, 0.5, -1e9, -3e38)], ids=["none", "sinks"])
def test_gradients_of_graphs_count_keys_beside_a_fill(fill, sinks):
    """Rows 1 and 4 are filled throughout, row 2 but for two keys."""
    bias = normal(7, 7, seed=6)
    bias[[1, 4]] = bias[2, 2:] = fill
    options = {"mask": MASKS["padding"](torch.tensor([5, 0, 7]), 7, 7), "bias": bias}
    options["sinks"] = None if sinks is None else torch.tensor(sinks)
    grads = []
    for call in (torch.compile(attention, backend="aot_eager", fullgraph=True), attention_steps):
        arrays = [array.requires_grad_() for array in inputs(7, 7)]
        output = call(*arrays, **options)
        output = output if isinstance(output, torch.Tensor) else output.output
        grads.append(torch.autograd.grad(output, arrays, normal(*output.shape, seed=4)))
    for name, got, expected in zip(("query", "key", "value"), *grads, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5, msg=f"gradient of {name}")


POLICIES = ["none-zero", "causal-zero", "padding-zero", "padding-uniform", "cells-nan"]


@pytest.mark.parametrize("case", POLICIES)
def test_gradients_of_graphs_are_those_of_eager_calls(case):
    name, policy = case.split("-")
    mask = MASKS[name](torch.tensor([5, 0, 7]), 7, 7)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    grads = []
    for call in (compiled, attention):
        arrays = [array.requires_grad_() for array in inputs(7, 7)]
        output = call(*arrays, mask=mask, empty_rows=policy)
        grads.append(torch.autograd.grad(output, arrays, normal(*output.shape, seed=4)))
    torch.testing.assert_close(*grads, atol=5e-6, rtol=1e-5)


def test_a_graph_can_be_differentiated_once():
    x = inputs(7, 7, value_width=8)[0].requires_grad_()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    (first,) = torch.autograd.grad(compiled(x, x, x).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"not currently support double backward"):
        torch.autograd.grad(first.sum(), x)


class Net(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.encoder, self.mask = TransformerEncoder(1, 16, 2, 32).eval(), mask

    def forward(self, x, hidden):
        return self.encoder(x, mask=self.mask, src_key_padding_mask=hidden)


def batch(samples, length):
    hidden = torch.arange(length) >= torch.arange(samples, 0, -1)[:, None]
    return normal(samples, length, 16, seed=6), hidden


class Processed(nn.Module):
    """Attention whose heads are normed and turned before they meet."""

    def __init__(self, mask):
        super().__init__()
        heads = QKNorm(6, rotary(base=99.0, dim=4))
        self.attn, self.mask = MultiHeadAttention(16, 4, head_dim=6, process_heads=heads), mask
        nn.init.uniform_(self.attn.process_heads.q_norm.weight, 0.5, 2.0)

    def forward(self, x, hidden):
        return self.attn(x, key_padding_mask=hidden, attn_mask=self.mask, need_weights=False)[0]


NETS = {"padding": None, "causal": causal(), "window": sliding_window(2)}
SHAPES = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
SHAPES["hidden"] = SHAPES["x"]


@pytest.mark.parametrize("name", NETS)
def test_an_exported_program_takes_any_batch_length_and_padding(name):
    net = Net(NETS[name]).eval()
    program = torch.export.export(net, batch(2, 5), dynamic_shapes=SHAPES).module()
    for size in ((2, 5), (1, 7), (3, 131), (4, 1)):
        torch.testing.assert_close(program(*batch(*size)), net(*batch(*size)), atol=5e-6, rtol=1e-5)


def test_processed_heads_are_exported_for_any_batch_and_length():
    net = Processed(causal()).eval()
    program = torch.export.export(net, batch(2, 5), dynamic_shapes=SHAPES).module()
    for size in ((2, 5), (1, 7), (3, 131), (4, 1)):
        torch.testing.assert_close(program(*batch(*size)), net(*batch(*size)), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_a_trace_takes_padding(name):
    net = Net(NETS[name]).eval()
    traced = torch.jit.trace(net, batch(2, 5), check_trace=False)
    x, hidden = batch(2, 5)
    for given in (hidden, hidden.flip(0), torch.ones_like(hidden)):
        torch.testing.assert_close(traced(x, given), net(x, given), atol=5e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of its own ways
@pytest.mark.parametrize("name", NETS)
def test_onnx_takes_any_batch_length_and_padding(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime, file = pytest.importorskip("onnxruntime"), tmp_path / "net.onnx"
    net = Net(NETS[name]).eval()
    torch.onnx.export(net, batch(2, 5), file, dynamo=True, dynamic_shapes=SHAPES, verbose=False)
    session = runtime.InferenceSession(file)
    names = [given.name for given in session.get_inputs()]
    for size in ((2, 5), (4, 11)):
        given = {n: array.numpy() for n, array in zip(names, batch(*size), strict=True)}
        (got,) = session.run(None, given)
        torch.testing.assert_close(
            torch.from_numpy(got), net(*batch(*size)).detach(), atol=5e-6, rtol=1e-5
        )
