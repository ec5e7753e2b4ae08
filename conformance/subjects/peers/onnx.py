"""The operators Attention and RotaryEmbedding of ONNX, by the reference and by ONNX Runtime.

An additive mask goes into the input of the bool mask, so there is no bias beside a mask. The
weights are the operator's fourth output, after softmax. ONNX Runtime has a kernel of its own up to
opset 24; of the newest Attention, and in float64, it runs the graph that ONNX defines it by.
"""
# mypy: disable-error-code="import-not-found"

from functools import cache

import numpy as np
from onnx import helper
from onnx.helper import np_dtype_to_tensor_dtype as onnx_dtype
from onnx.reference import ReferenceEvaluator

from ..protocol import NotOffered
from .base import FunctionPeer
from .numpy import NumPy

AFTER_SOFTMAX = 3


def model(opset: int, types: tuple, weights: bool, attributes: tuple):
    """Return a model of one node, for inputs of these (name, dtype, rank)."""
    names = [name for name, _, _ in types]
    outputs = ["Y", "", "", "W"] if weights else ["Y"]
    own = dict(attributes) | ({"qk_matmul_output_mode": AFTER_SOFTMAX} if weights else {})
    node = helper.make_node("Attention", names, outputs, **own)
    made = helper.make_tensor_value_info
    given = [made(name, dtype, [None] * rank) for name, dtype, rank in types]
    taken = [made(name, types[0][1], [None] * 4) for name in outputs if name]
    graph = helper.make_graph([node], "attention", given, taken)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def rotary_model(opset: int, dtype: int, attributes: tuple):
    """Return a model of one node that turns heads of four axes."""
    names, made = ("X", "cos", "sin", "places"), helper.make_tensor_value_info
    node = helper.make_node("RotaryEmbedding", names, ["Y"], **dict(attributes))
    types = zip(
        names, (dtype, dtype, dtype, onnx_dtype(np.dtype("int64"))), (4, 2, 2, 2), strict=True
    )
    given = [made(name, own, [None] * rank) for name, own, rank in types]
    graph = helper.make_graph([node], "rotary", given, [made("Y", dtype, [None] * 4)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@cache
def reference(make, *wanted):
    return ReferenceEvaluator(make(*wanted))


@cache
def runtime(make, *wanted):
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # what is wrong it also raises
    made = make(*wanted).SerializeToString()
    return InferenceSession(made, options, providers=["CPUExecutionProvider"])


class Reference(NumPy, FunctionPeer):
    """The evaluator that comes with ONNX, in NumPy."""

    packages: tuple[str, ...] = ("onnx", "numpy")
    capabilities = frozenset(
        {"attention", "weights", "scale", "softcap", "grouped", "causal", "rotary"}
    )
    opset = 25  # the newest Attention
    session = staticmethod(reference)

    def call(
        self, query, key, value, *, mask=None, scale=None, softcap=None, causal=False,
        need_weights=False,
    ):  # fmt: skip
        feeds = {"Q": query, "K": key, "V": value} | ({} if mask is None else {"attn_mask": mask})
        types = tuple((n, onnx_dtype(x.dtype), x.ndim) for n, x in feeds.items())
        attributes = {"scale": scale, "softcap": softcap, "is_causal": int(causal)}
        given = tuple((n, x) for n, x in attributes.items() if x is not None)
        found = self.session(model, self.opset, types, need_weights, given).run(None, feeds)
        return found[0], found[-1] if need_weights else None

    def rotary(
        self, query, key, positions, *, base=1e4, dim=None, interleaved=False, scale=1.0,
        frequencies=None,
    ):  # fmt: skip
        if query.dtype == np.float64:
            raise NotOffered("the operator takes no float64")
        self.tell("the operator is given cosines and sines, here the suite's")
        dim = 2 * len(frequencies) if frequencies else dim or query.shape[3]
        steps = frequencies or [base ** (-i / dim) for i in range(0, dim, 2)]
        angles = np.arange(positions.max() + 1.0)[:, None] / scale * steps
        tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
        feeds = {name: table.astype(query.dtype) for name, table in tables.items()}
        feeds["places"] = np.repeat(positions, len(query) // len(positions), 0).astype(np.int64)
        own = {} if interleaved is None else {"interleaved": int(interleaved)}
        own |= {"rotary_embedding_dim": dim} if dim < query.shape[3] else {}
        wanted = self.opset, onnx_dtype(query.dtype), tuple(own.items())
        session = self.session(rotary_model, *wanted)
        return [session.run(None, feeds | {"X": x})[0] for x in (query, key)]


class Runtime(Reference):
    """ONNX Runtime, the newest Attention."""

    packages = ("onnxruntime", *Reference.packages)
    dtypes = ("float32", "float64", "float16")
    session = staticmethod(runtime)


class Kernel(Runtime):
    """ONNX Runtime, its own kernel."""

    opset = 24
