"""python -m benchmarks.accelerator: one framework on one device, as JSON Lines, row by row.

Each row measures our call and its rivals in turn, in one process. A rival that refuses is written
with its reason, and a call whose values are wrong is written with what is wrong, and no time.
"""

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import inputs
from .measure import interleaved, pair
from .truth import disagreement, truth

LONG, WIDE = (8, 16, 4096, 64), (32, 16, 512, 64)  # B, H, T, D
CONTEXT = 8192
TINY, TINY_DECODE = (2, 2, 320, 16), (2, 2, 160, 8)
KINDS = ("causal", "none", "window", "packed", "padded")
DTYPES = ("bfloat16", "float32")
# What a ratio should reach: by kind of work at LONG in 16 bits, against each of these rivals.
KERNEL, DENSE = {"flash": 0.95, "efficient": 0.95, "cudnn": 0.95}, {"efficient": 3.0, "math": 3.0}
FLOORS = {"causal": KERNEL, "none": KERNEL, "window": DENSE, "packed": DENSE}
FLOORS["decode"] = {"by hand": 0.9}
FLOORS_OF_JAX = {work: {"cudnn": 0.9} for work in ("causal", "none", "window", "padded")}
ROW_SECONDS = 0.8  # in which rounds begin; five are measured in any case


@dataclass(frozen=True)
class AcceleratorRow:
    """What is measured; of a decoding step `shape` is (B, heads, context, head's width)."""

    work: str
    dtype: str
    shape: tuple[int, ...]
    backward: bool = False
    compiled: bool = False  # against FlexAttention, which takes seconds to compile

    @property
    def name(self) -> str:
        shape = ", ".join(map(str, self.shape))
        name = f"{self.work} {self.dtype} ({shape}){' + backward' * self.backward}"
        return f"{name}, compiled" if self.compiled else name


class TimedCall(NamedTuple):
    """A call that is ready, how to take its last sample's last head, and its memory in MiB."""

    run: Callable
    head: Callable
    memory: Callable[[], float | None] = lambda: None


def rows(backend: str, tiny: bool = False) -> list[AcceleratorRow]:
    """Return the rows of a backend, those that tell most first and those that compile together."""
    both = (False, True)
    eager = {
        shape: [
            AcceleratorRow(k, d, shape, backward)
            for backward in both
            for d in DTYPES
            for k in KINDS
        ]
        for shape in (LONG, WIDE)
    }
    decode = [AcceleratorRow("decode", dtype, (4, 8, CONTEXT, 64)) for dtype in DTYPES]
    found = [*eager[LONG][:5], *decode, *eager[LONG][5:], *eager[WIDE]]
    if backend == "torch":
        compiled = [replace(row, compiled=True) for row in (*eager[LONG], *eager[WIDE])]
        first = [row for row in compiled if (row.shape, row.dtype) == (LONG, DTYPES[0])]
        later = [row for row in compiled if row not in first]
        found[-len(eager[WIDE]) : -len(eager[WIDE])] = first
        found += later
    return [_tiny(row) for row in found if _rehearsed(row)] if tiny else found


def _rehearsed(row: AcceleratorRow) -> bool:
    """Whether a rehearsal measures such a row: each kind, pass and dtype, nothing compiled."""
    one = row.work == "decode" or row.dtype == DTYPES[row.backward]
    return one and row.shape != WIDE and not row.compiled


def _tiny(row: AcceleratorRow) -> AcceleratorRow:
    return replace(row, shape=TINY_DECODE if row.work == "decode" else TINY)


def lengths(shape: tuple[int, ...]) -> list[int]:
    """Return the samples' lengths under "padded": from all of T down to half of it."""
    return np.linspace(shape[2], shape[2] // 2, shape[0]).astype(int).tolist()


def allowed(work: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return bool (B or 1, 1, T or 1, S): what a mask of this kind allows."""
    if work == "padded":
        return (np.arange(shape[2]) < np.array(lengths(shape))[:, None])[:, None, None]
    return inputs.allowed(work, shape[2])[None, None]


def mask(module, work: str, shape: tuple[int, ...]):
    """Return the same as a `Mask` of a backend."""
    if work == "padded":
        return module.padding(lengths(shape))
    return inputs.mask(module, work, shape[2], shape[0])


def expected(row: AcceleratorRow, ours: list[np.ndarray] | None) -> list[tuple] | None:
    """Return what a row's calls must answer: the textbook's answer, or in decoding ours.

    A step rounds to its dtype in four linear maps, keys, values, weights and the mean, at most
    twice each, and it sums up to `context` values of size about 1 in float32.
    """
    if row.work != "decode":
        return _textbook(row.work, row.shape, row.dtype, row.backward)
    if ours is None:
        return None
    import ml_dtypes

    eps = float(ml_dtypes.finfo(row.dtype).eps)
    sums = np.finfo(np.float32).eps * row.shape[2]
    return [("output", ours[0], np.full_like(ours[0], 16 * eps * abs(ours[0]).max() + sums))]


@cache
def _textbook(work: str, shape: tuple[int, ...], dtype: str, backward: bool) -> list[tuple]:
    last = np.broadcast_to(allowed(work, shape)[-1, 0], (shape[2],) * 2)
    return truth(last, shape, dtype, backward)


def attempt(make: Callable[[], TimedCall]) -> tuple[TimedCall | None, list[np.ndarray], dict]:
    """Call once: return the call, its values, and in words why there are none."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            call = make()
            return call, call.head(call.run()), {}
        except Exception as error:  # whatever it is, it is this call's answer
            return None, [], {"refused": reason(error, [str(one.message) for one in told])}


def reason(error: Exception, told: list[str]) -> str:
    """Say in a few words why a call was refused: torch tells its reasons as warnings."""
    text = str(error).strip()
    if "out of memory" in text.lower() or "RESOURCE_EXHAUSTED" in text:
        return "out of memory"
    noise = ("not used because", "runtime disabled", "has been disabled")
    causes = [line.partition(" (Triggered internally")[0] for line in told]
    causes = [line for line in causes if not any(word in line for word in noise)]
    if "No available kernel" in text and causes:
        text = causes[-1]
    first = (text.splitlines() or [""])[0].partition(". ")[0].strip()
    if not first or isinstance(error, NotImplementedError | KeyError | AttributeError):
        first = f"{type(error).__name__}: {first}"
    return first if len(first) <= 160 else f"{first[:160]}..."


def floors(backend: str, row: AcceleratorRow) -> dict[str, float]:
    """Return what a row's ratios should reach, by rival."""
    if row.dtype != DTYPES[0] or row.shape[2] < LONG[2] or row.compiled:
        return {}
    return (FLOORS_OF_JAX if backend == "jax" else FLOORS).get(row.work, {})


def measure(
    row: AcceleratorRow, makers: dict[str, Callable[[], TimedCall]], seconds: float
) -> dict:
    """Measure one row; `makers` makes our call first, then the rivals'."""
    calls, values, told = {}, {}, {}
    for name, make in makers.items():
        call, values[name], told[name] = attempt(make)
        if call:
            calls[name] = call
    gc.collect()  # what a refused call had taken
    right = expected(row, values["ours"] or None)
    for name in calls:
        if right is not None and (wrong := disagreement(values[name], right)):
            told[name] = {"disagrees": wrong}
    sound = [name for name in calls if not told[name]]
    times = interleaved([calls[name].run for name in sound], seconds) if sound else []
    times = dict(zip(sound, times, strict=True))
    for name in sound:
        told[name] = {"ms": 1e3 * float(np.median(times[name])), "mib": calls[name].memory()}
        if name != "ours" and "ours" in times:
            compared = pair(times["ours"], times[name])
            told[name] |= {"ratio": compared.ratio, "low": compared.low, "high": compared.high}
    return {"ours": told.pop("ours"), "rivals": told}


def run(backend: str, device: str, path: Path, seconds: float, tiny: bool) -> None:
    """Measure rows for as long as there is time, and write each as it comes."""
    module = import_module(f"benchmarks.accelerator_{backend}")
    module.start(device)
    gc.freeze()  # what is there now stays: looking through it for each row takes long
    wanted, start = rows(backend, tiny), time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        write = lambda **line: print(json.dumps(line), file=file, flush=True)  # noqa: E731
        write(type="rows", backend=backend, device=device, names=[row.name for row in wanted])
        for row in wanted:
            begun = time.monotonic()
            if begun - start > seconds:
                break
            try:
                found = measure(row, module.makers(row), 0.02 if tiny else ROW_SECONDS)
                for rival, floor in floors(backend, row).items():
                    if "ratio" in found["rivals"].get(rival, {}):
                        found["rivals"][rival]["floor"] = floor
            except Exception as error:
                found = {"ours": {"refused": reason(error, [])}, "rivals": {}}
            took = round(time.monotonic() - begun, 2)
            write(type="bench", backend=backend, **asdict(row), **found, seconds=took)


def main(arguments: list[str] | None = None) -> int:
    """Measure one framework on one device."""
    parser = argparse.ArgumentParser("benchmarks.accelerator", description=__doc__)
    parser.add_argument("--backend", required=True, choices=("torch", "jax"))
    parser.add_argument("--device", default="cuda", help="cuda, xpu, mps, tpu or cpu")
    parser.add_argument("--report", type=Path, required=True, help="where the JSON Lines go")
    parser.add_argument("--seconds", type=float, default=120, help="no row begins after these")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to rehearse")
    options = parser.parse_args(arguments)
    run(options.backend, options.device, options.report, options.seconds, options.tiny)
    return 0


if __name__ == "__main__":
    sys.exit(main())
