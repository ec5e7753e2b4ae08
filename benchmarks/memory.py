"""How much memory a call takes beyond its inputs and output, and how that grows with T.

NumPy and torch are asked in a process of their own, by the kernel's high-water mark of resident
memory, reset after a warm-up call on short inputs. JAX is asked for the temporaries of the compiled
program, which is exact and does not count the compiler itself.
"""

import json
import subprocess
import sys
from functools import partial

from .inputs import arrays, mask

MIB = 2**20
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
        for length in (1024, 4096, 16384)
    ),
]


def extra(backend: str, kind: str, length: int, backward: bool) -> float:
    """Return MiB beyond inputs and outputs (forward: one; backward: one and three), one head."""
    shape = (1, 1, length, 64)
    if backend == "jax":
        return _compiled(kind, shape, backward) / MIB
    arguments = json.dumps([backend, kind, length, backward])
    command = [sys.executable, "-m", "benchmarks.memory", arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


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
    from .rows import torch_call

    def make(length):
        shape = (1, 1, length, 64)
        if backend == "numpy":
            import attn_numpy as module

            return partial(module.attention, *arrays(shape), mask=mask(module, kind, length))
        import attn_torch as module

        attend = partial(module.attention, mask=mask(module, kind, length))
        return torch_call(attend, shape, backward)

    make(512)()  # load libraries, start threads
    call = make(length)
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # reset the high-water mark
    before = _status("VmRSS")
    result = call()
    outputs = result if isinstance(result, tuple | list) else (result,)
    kept = length * 64 * 4 * (len(outputs) + backward)
    return (_status("VmHWM") - before - kept) / MIB


def _status(field: str) -> int:
    with open("/proc/self/status") as lines:
        (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_in_this_process(*json.loads(sys.argv[1])))
