"""Which way a call goes, and that the fast ways never hold a (T, S) matrix.

The ways are told apart by what the modules call: `attend_steps` is the textbook, everything
else is fast. The torch backend has four fast ways: torch's own kernel, the same for a part of the
keys or with a small dense mask, and blocks of queries.
"""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module

import numpy as np
import pytest

from conformance import subjects
from conformance.cases.arrays import normal
from conformance.mask_spec import Spec, allow, causal, padding, predicate, segments, sliding_window

BACKENDS = ("numpy", "torch", "jax")
STEPS = {"attention.attend_steps": "steps", "multihead.attend_steps": "steps"}
WAYS = {
    "numpy": STEPS | {"attention.attention_blocked": "blocked"},
    "torch": STEPS
    | {"everyday.fused": "fused", "blocked.fused": "fused", "blocked.plan": "blocks"}
    | {"everyday._attend_parts": "parts", "everyday._attend_dense": "dense"},
    "jax": STEPS | {"attention.attention_blocked": "blocked"},
}


@pytest.fixture
def ways(request, monkeypatch) -> list[str]:
    """The ways that the test's backend has gone, in the order of going."""
    backend, gone = request.getfixturevalue("backend"), []
    for place, way in WAYS[backend].items():
        module, name = place.split(".")
        module = import_module(f"attn_{backend}.{module}")
        monkeypatch.setattr(module, name, _noted(getattr(module, name), gone, way))
    return gone


def _noted(function: Callable, gone: list[str], way: str) -> Callable:
    def call(*args, **options):
        gone.append(way)
        return function(*args, **options)

    return call


@dataclass
class Row:
    """A call, and the way that it goes in NumPy, PyTorch and JAX; `factor` multiplies Q and K."""

    ways: tuple[str, str, str]
    options: dict = field(default_factory=dict)
    sizes: tuple[int, int, int, int] = (2, 2, 131, 139)  # B, H, T, S: two tiles by two in JAX
    dims: tuple[int, int] = (16, 16)
    kv_heads: int = 2
    dtype: str = "float32"
    factor: float = 1.0

    def inputs(self) -> list[np.ndarray]:
        batch, heads, queries, keys = self.sizes
        query = normal(1, batch, heads, queries, self.dims[0], dtype_name=self.dtype)
        key = normal(2, batch, self.kv_heads, keys, self.dims[0], dtype_name=self.dtype)
        value = normal(3, batch, self.kv_heads, keys, self.dims[1], dtype_name=self.dtype)
        return [query * query.dtype.type(self.factor), key * key.dtype.type(self.factor), value]


WALK = ("blocked", "blocks", "blocked")
PARTS = ("blocked", "parts", "blocked")
DENSE = ("blocked", "dense", "blocked")
FUSED = ("blocked", "fused", "blocked")
TEXTBOOK = ("steps", "steps", "steps")
SQUARE = (2, 2, 139, 139)

CALLS = {
    # Where everything is allowed, or plainly causal, torch's kernel serves.
    "no_mask": Row(FUSED),
    "causal_square": Row(FUSED, {"mask": causal()}, SQUARE),
    "causal_negative_scale": Row(FUSED, {"mask": causal(), "scale": -0.5}, SQUARE),
    "padding_of_nothing": Row(PARTS, {"mask": padding([139, 139])}),
    "window_over_all": Row(DENSE, {"mask": sliding_window(139, 139), "query_offset": 0}),
    "allow_all": Row(DENSE, {"mask": allow(np.ones((1, 1, 131, 139), bool))}),
    "grouped": Row(FUSED, kv_heads=1),
    "float16": Row(FUSED, dtype="float16"),
    "float64": Row(FUSED, dtype="float64"),
    "nan_policy_without_a_mask": Row(FUSED, {"empty_rows": "nan"}),
    # Elsewhere torch's kernel gets ranges of keys, or a dense mask where that is small.
    "causal_last": Row(DENSE, {"mask": causal(), "query_offset": 8}),
    "causal_first": Row(PARTS, {"mask": causal(), "query_offset": 0}),
    "causal_square_with_offset": Row(DENSE, {"mask": causal(), "query_offset": 3}, SQUARE),
    "causal_per_sample": Row(DENSE, {"mask": causal(), "query_offset": np.array([8, 0])}),
    "window": Row(DENSE, {"mask": sliding_window(17), "query_offset": 8}),
    "padding": Row(PARTS, {"mask": padding([97, 0])}),
    "causal_and_padding": Row(DENSE, {"mask": causal() & padding([97, 139])}, SQUARE),
    "predicate": Row(DENSE, {"mask": predicate(lambda b, h, q, k: k <= q), "query_offset": 8}),
    # Everything else goes block by block.
    "window_long": Row(WALK, {"mask": sliding_window(17), "query_offset": 0}, (2, 2, 257, 256)),
    "bias": Row(WALK, {"bias": normal(5, 131, 139, dtype_name="float32")}),
    "softcap": Row(WALK, {"softcap": 2.0}),
    "value_wider": Row(WALK, dims=(16, 17)),
    # Dropout takes one path whatever else is asked, and what is empty needs no fast one.
    "dropout": Row(TEXTBOOK, {"dropout": 0.3, "seed": 1}),
    "dropout_all": Row(TEXTBOOK, {"dropout": 1.0, "seed": 1}),
    "no_sample": Row(TEXTBOOK, sizes=(0, 2, 131, 139)),
    "no_query": Row(TEXTBOOK, sizes=(2, 2, 0, 139)),
    "no_key": Row(TEXTBOOK, sizes=(2, 2, 131, 0)),
    "no_value": Row(TEXTBOOK, dims=(16, 0)),
    # Logits beyond float32: NumPy's walk meets one and gives up; JAX's marks them itself.
    "overflow": Row(("blocked steps", "steps", "blocked"), factor=1e20),
    "no_overflow": Row(FUSED, factor=1e15),
    # JAX compiles the loop over tiles for more than one tile only.
    "small": Row(("blocked", "fused", "steps"), sizes=(2, 2, 5, 7)),
    "one_tile": Row(("blocked", "fused", "steps"), sizes=(2, 2, 128, 128)),
    "one_tile_and_a_key": Row(FUSED, sizes=(2, 2, 128, 129)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_attention_goes_the_way_of_the_table(backend, name, ways):
    row = CALLS[name]
    subjects.load(backend).attention(*row.inputs(), **row.options)
    assert ways == row.ways[BACKENDS.index(backend)].split()


HIDDEN = np.arange(139) >= np.array([[97], [0]])  # (B, S)
MODULE_CALLS = {
    "weights": (TEXTBOOK, {}),
    "weights_per_head": (TEXTBOOK, {"average_weights": False}),
    "output": (FUSED, {"need_weights": False}),
    "output_causal": (FUSED, {"need_weights": False, "attn_mask": causal()}),
    "output_padded": (PARTS, {"need_weights": False, "key_padding_mask": HIDDEN}),
    "output_added": (WALK, {"need_weights": False, "attn_mask": np.zeros((139, 139), np.float32)}),
    "output_evaluated": (FUSED, {"need_weights": False, "dropout": 0.3}),
    "output_trained": (TEXTBOOK, {"need_weights": False, "dropout": 0.3, "training": True}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODULE_CALLS)
def test_multihead_goes_the_way_of_the_table(backend, name, ways):
    wanted, options = MODULE_CALLS[name]
    subject, options = subjects.load(backend), dict(options)
    config = {"embed_dim": 14, "num_heads": 2}
    parameters = subject.parameters(config)
    config["dropout"] = options.pop("dropout", 0.0)
    x = normal(7, 2, 139, 14, dtype_name="float32")
    subject.multihead(config, parameters, x, seed=1, **options)
    assert ways == [wanted[BACKENDS.index(backend)]]


@pytest.mark.parametrize("backend", ["torch"])
def test_tensors_without_values_go_through_the_steps(backend, ways):
    import torch

    from attn_torch import attention

    output = attention(*torch.empty(3, 2, 2, 131, 16, device="meta"))
    assert (output.shape, output.device.type, ways) == ((2, 2, 131, 16), "meta", ["steps"])


# Memory. T x S is 4.2 million cells: a matrix even of one byte a cell stands out.

T, S, D = 2053, 2063, 16
MATRIX = T * S
MASKS = {
    "none": None,
    "causal": causal(),
    "window": sliding_window(257),
    "padding": padding([1031]),
    "packed": causal() & segments([[0] * 701 + [1] * 1362]),
    "predicate": predicate(lambda batch, head, query, key: (query + key) % 3 != 0),
}


def most_held(backend: str, way: str, mask: Spec | None) -> int:
    """Return the bytes of the largest thing held in a call, backward too where there is one."""
    subject = subjects.load(backend)
    inputs = [normal(i, 1, 1, n, D, dtype_name="float32") for i, n in enumerate((T, S, S, T))]
    call = partial(subject.path(way), mask=subject.mask(mask), query_offset=S - T)
    return {"numpy": _traced, "torch": _dispatched, "jax": _compiled}[backend](
        call, [subject.array(x) for x in inputs]
    )


def _traced(call: Callable, inputs: list) -> int:
    """NumPy tells tracemalloc of its memory: what all arrays hold together at the worst moment."""
    tracemalloc.start()
    try:
        call(*inputs[:3])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _dispatched(call: Callable, inputs: list) -> int:
    """The largest tensor that any operation has made."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        held = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else (made,):
                if isinstance(tensor, torch.Tensor):
                    self.held = max(self.held, tensor.untyped_storage().nbytes())
            return made

    *inputs, grad = (x.clone() for x in inputs)
    with Largest() as largest:
        call(*(x.requires_grad_() for x in inputs)).backward(grad)
    return largest.held


def _compiled(call: Callable, inputs: list) -> int:
    """The temporaries of the compiled program, all together."""
    import jax

    backward = jax.jit(lambda *x: jax.vjp(call, *x[:3])[1](x[3]))
    return backward.lower(*inputs).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MASKS)
def test_the_fast_way_holds_no_matrix(backend, name, monkeypatch):
    if backend == "numpy":  # each thread has a workspace
        monkeypatch.setattr("attn_numpy.blocked.THREADS", 2)
    held = most_held(backend, "attention", MASKS[name])
    assert held < MATRIX, f"T x S is {MATRIX} cells: {held} bytes were held"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_textbooks_matrix_is_noticed(backend):
    held = most_held(backend, "steps", MASKS["causal"])
    assert held >= 4 * MATRIX, f"the scores alone take {4 * MATRIX} bytes: {held} were held"
