"""How much memory a call takes beyond its inputs and output, and how that grows with T.

NumPy tells tracemalloc of all its memory, so it is asked that, which is exact. Torch is asked in a
process of its own, by the kernel's high-water mark of resident memory, reset after a warm-up call
on short inputs; its allocator is told to give freed memory back at once, or what the warm-up freed
would be used again unseen. JAX is asked for the temporaries of the compiled program, which is exact
and does not count the compiler itself.
"""

import json
import os
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

from .inputs import arrays, mask

MIB = 2**20
MARKS = Path("/proc/self/clear_refs")
AT_MOST = {"window": 64}  # MiB
LENGTHS = (1024, 4096, 16384)  # each four times the one before: linear is 4 x, quadratic 16 x
LINEAR = 8  # between the two: growth by no more counts as linear
CASES = [
    ("numpy", "window", 32768, False),
    ("torch", "window", 32768, False),
    ("jax", "window", 32768, False),
    *(
        (backend, "causal", length, backward)
        for backend, backward in (
            ("numpy", False),
            ("torch", False),
            ("torch", True),
            ("jax", False),
            ("jax", True),
        )
        for length in LENGTHS
    ),
]


def name(case: tuple[str, str, int, bool]) -> str:
    backend, kind, length, backward = case
    return f"{backend} {kind} T={length}{' + backward' * backward}"


def extra(backend: str, kind: str, length: int, backward: bool) -> float | None:
    """Return MiB beyond inputs and outputs (forward: one; backward: one and three), one head.

    None where nobody can tell: only Linux can reset the high-water mark of resident memory.
    """
    shape = (1, 1, length, 64)
    if backend == "jax":
        return _compiled(kind, shape, backward) / MIB
    if backend == "numpy":
        return _traced(kind, shape) / MIB
    if not MARKS.exists():
        return None
    arguments = json.dumps([backend, kind, length, backward])
    command = [sys.executable, "-m", "benchmarks.memory", arguments]
    # glibc: one pool of memory, large blocks mapped, and what is freed given back at once.
    thrifty = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    run = partial(subprocess.run, capture_output=True, text=True, encoding="utf-8", check=True)
    return float(run(command, env=os.environ | thrifty).stdout)


def growth(found: dict[tuple, float | None]) -> list[dict]:
    """Return by how much each case grew from a quarter of its length, None where from nothing.

    A case that was not measured has no row.
    """
    steps = []
    for (backend, kind, length, backward), mib in found.items():
        before = found.get((backend, kind, length // 4, backward))
        if before is not None and mib is not None:
            work = f"{backend} {kind} T={length // 4} to {length}{' + backward' * backward}"
            ratio = mib / before if before > 0 else None
            steps.append({"work": work, "ratio": ratio, "at_most": LINEAR})
    return steps


def _traced(kind: str, shape) -> int:
    import attn_numpy

    call = partial(attn_numpy.attention, *arrays(shape), mask=mask(attn_numpy, kind, shape[2]))
    tracemalloc.start()
    output = call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - output.nbytes


def _compiled(kind: str, shape, backward: bool) -> int:
    import jax
    import jax.numpy as jnp

    import attn_jax

    own = mask(attn_jax, kind, shape[2])
    attend = partial(attn_jax.attention, mask=own)
    inputs = [jnp.asarray(x) for x in arrays(shape)]
    if backward:
        call = jax.jit(lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g))
        inputs.append(inputs[0])
    else:
        call = jax.jit(attend)
    return call.lower(*inputs).compile().memory_analysis().temp_size_in_bytes


def _in_this_process(backend: str, kind: str, length: int, backward: bool) -> float:
    import attn_torch

    from .rows import torch_call

    def make(length):
        attend = partial(attn_torch.attention, mask=mask(attn_torch, kind, length))
        return torch_call(attend, (1, 1, length, 64), backward)

    make(512)()  # load libraries, start threads
    call = make(length)
    MARKS.write_text("5", "ascii")  # reset the high-water mark
    before = _status("VmRSS")
    result = call()
    outputs = result if isinstance(result, tuple | list) else (result,)
    kept = length * 64 * 4 * (len(outputs) + backward)
    return (_status("VmHWM") - before - kept) / MIB


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8", errors="replace").splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_in_this_process(*json.loads(sys.argv[1])))
