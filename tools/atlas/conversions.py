"""How a mask goes to each library: lines of conversions.toml, and the proof that each is right.

    python -m tools.atlas.conversions torch-sdpa jax-nn

A line is run on the installed library; what it gives must be what `attention` gives with the `Mask`
that it was made from, and the same line with the mask turned round must not. Where a variant is a
path through PyTorch, the line must run the operator which that path goes by.
"""

import json
import os
import sys
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import numpy as np

from conformance.reports.diagnosis import explains

GIVEN = """
import numpy as np
from {module} import attention, causal, padding
B, H, T, S, D = 2, 4, 5, 5, 3
E = H * D
x = np.random.default_rng(0).normal(size=(B, T, E)).astype("float32")
mask = causal() & padding([4, 2])
heads = x.reshape(B, T, H, D).swapaxes(1, 2)
"""
OWN = {
    "numpy": "array = np.asarray",
    "torch": "import torch; array = lambda x: torch.tensor(np.ascontiguousarray(x))",
    "jax": "import jax; import jax.numpy as jnp; array = jnp.asarray",
}
MADE = """
x, q = array(x), array(heads)
k = v = q
expected = attention(q, k, v, mask=mask)
allowed = mask.allowed(T, S)
"""


class Conversion(NamedTuple):
    """How a mask goes to some peers."""

    name: str
    peers: list[str]
    backend: str
    layout: str
    line: str
    setup: str
    variants: Mapping[str, str] = MappingProxyType({})
    operators: Mapping[str, str] = MappingProxyType({})
    turned: bool = False  # whether the output is (B, T, H, D) though the inputs are not

    def program(self, peer: str) -> str:
        """Return what comes before the line."""
        backend = self.backend
        if backend == "keras":
            backend = os.environ["KERAS_BACKEND"]
        given = GIVEN.format(module=f"attn_{backend}")
        parts = [given, OWN[backend], MADE, self.setup, self.variants.get(peer, "")]
        return "\n".join(parts)


@cache
def conversions() -> dict[str, Conversion]:
    """Return every peer's conversion. Raises ValueError where a peer has two."""
    text = Path(__file__).with_name("conversions.toml").read_text("utf-8")
    found: dict[str, Conversion] = {}
    for entry in tomllib.loads(text)["conversion"]:
        own = Conversion(**entry)
        if twice := set(own.peers) & set(found):
            raise ValueError(f"a peer has one conversion: got two of {sorted(twice)}")
        found |= dict.fromkeys(own.peers, own)
    return found


def fault(peer: str) -> str:
    """Return what is wrong with a peer's line, or ""."""
    own, module = conversions()[peer], ModuleType("line")  # a tracer looks a line's names up there
    names = module.__dict__
    try:
        sys.modules["line"] = module
        with ExitStack() as names["stack"]:
            exec(own.program(peer), names)
            return wrong(own, own.operators.get(peer, ""), names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def wrong(own: Conversion, operator: str, names: dict) -> str:
    """Return what is wrong with a line once everything before it has run, or ""."""
    expected = np.asarray(names["expected"])
    if not explains(output(own, names), expected):
        return f"it gives another output than the Mask: {own.line}"
    if operator and operator not in operators(own, names):
        return f"it does not run {operator}: {own.line}"
    names["allowed"] = ~names["allowed"]
    if explains(output(own, names), expected):
        return f"it gives the same with the mask turned round: {own.line}"
    return ""


def operators(own: Conversion, names: dict) -> set[str]:
    """Return which of PyTorch's operators the line runs."""
    from torch.autograd.profiler import profile

    with profile() as seen:
        output(own, names)
    return {event.name for event in seen.function_events or ()}


def output(own: Conversion, names: dict) -> np.ndarray:
    """Return the line's output, (B, H, T, D)."""
    found = eval(own.line, names)
    found = found[0] if isinstance(found, (tuple, list)) else found
    found = np.asarray(found.detach() if hasattr(found, "detach") else found)
    if own.layout == "B T E":
        found = found.reshape(*found.shape[:2], names["H"], names["D"])
    return found if own.layout == "B H T D" and not own.turned else found.swapaxes(1, 2)


def main() -> int:
    """Print what is wrong with each of these peers' lines, as JSON."""
    print(json.dumps({peer: fault(peer) for peer in sys.argv[1:]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
