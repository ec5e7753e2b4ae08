"""Calls of multi-head attention whose heads have a width of their own or are changed first."""

import numpy as np

from ..mask_spec import Spec, causal, padding, sliding_window
from ..oracle import expected, naive_heads, reference, reference_heads
from ..oracle.tolerance import compare
from ..subjects.protocol import Subject, require
from .arrays import normal
from .decoding import part
from .multihead import MultiHeadCase

GROUPED = {"embed_dim": 14, "num_heads": 4, "num_kv_heads": 2}
OWN = (0.9, 0.31, -0.2)
ROTARY: dict[str, dict] = {
    "halves": {"base": 30.0},
    "interleaved": {"base": 30.0, "interleaved": True},
    "partial": {"base": 30.0, "dim": 4},
    "partial_interleaved": {"base": 30.0, "dim": 2, "interleaved": True},
    "scaled": {"base": 30.0, "scale": 2.5},
    "frequencies": {"frequencies": OWN},
    "scaled_frequencies": {"frequencies": OWN, "scale": 2.5},
}
ROTARY = {name: {"class": "rotary"} | settings for name, settings in ROTARY.items()}
NORM = {"class": "QKNorm", "head_dim": 6, "eps": 0.1}
PROCESSES = ROTARY | {"norm": NORM, "norm_then_rotary": NORM | {"then": ROTARY["halves"]}}


def case(process: dict | None = None, **changes) -> MultiHeadCase:
    """Return self-attention of 14 features by 4 heads of 6, which share 2 key heads."""
    own = {} if process is None else {"process_heads": process}
    return MultiHeadCase(GROUPED | {"head_dim": 6} | own | changes, T=7)


def ragged(call: MultiHeadCase) -> tuple[dict, np.ndarray]:
    """Return a causal mask with padding as options, and what it allows."""
    hidden = np.arange(call.T) >= np.array([call.T, 0, 3])[:, None]
    mask = causal() & padding([call.T, 0, 3])
    allowed = reference.allowed(mask, (3, call.heads[0], call.T, call.T), 0)
    return {"attn_mask": causal(), "key_padding_mask": hidden}, allowed


def one_pass(call: MultiHeadCase, x: np.ndarray, mask: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Return the oracle's outputs for tokens under a mask, exact and naive."""
    T = x.shape[1]
    allowed = reference.allowed(mask, (len(x), call.heads[0], T, T), 0)
    told, places = call.told(), np.arange(T)[None]
    told |= {"query_places": places, "key_places": places} if "process" in told else {}
    steps = expected.multihead(
        call.parameters(x.dtype.name), *call.heads, x, x, x, allowed=allowed, **told
    )
    return steps[0]["output"], steps[1]["output"]


def decode(subject: Subject, call: MultiHeadCase, cuts: tuple[int, ...], **given) -> None:
    """Decode in pieces that end at the cuts, and check each against one pass."""
    require(subject, "cache")
    dtype_name = given.pop("dtype_name", "float32")
    mask = given.pop("mask", None)
    x = normal(call.seed, 3, cuts[-1], 14, dtype_name=dtype_name)
    seen = sliding_window(given["window"]) if "window" in given else causal()
    exact, naive = one_pass(call, x, seen)
    parameters = call.parameters(dtype_name)
    sizes = {"capacity": cuts[-1] + 2, "batch_size": 3}
    decoding = subject.decoding("attention", call.config, parameters, **sizes, **given)
    first = 0
    for last in cuts:
        options = {} if mask is None else {"attn_mask": mask}
        got = decoding.feed(x[:, first:last], **options)
        part(got, exact, naive, first, f"outputs of tokens {first}..{last - 1}")
        first = last


def check_turned(subject: Subject, spec: dict, places: np.ndarray, dtype_name: str) -> None:
    """Check what a process makes of heads at some places, alone."""
    require(subject, "rotary")
    query = normal(8, 3, 4, places.shape[1], 6, dtype_name=dtype_name)
    key = normal(9, 3, 2, places.shape[1], 6, dtype_name=dtype_name)
    got = subject.processed(spec, query, key, places)
    for role, x, own in zip("qk", (query, key), got, strict=True):
        exact = reference_heads.process({}, spec, role, x.astype(np.float64), places)
        answers = [naive_heads.process({}, spec, role, x, places, f) for f in (False, True)]
        errors = [abs(answer.astype(np.float64) - exact).max() for answer in answers]
        worst = answers[int(np.argmax(errors))]
        compare(own, exact, worst, f"{role} at its places")
