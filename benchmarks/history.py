"""The history of runs in docs/benchmarks.jsonl: one JSON line a run, of a shape with a number.

A change to the shape gets the next number, and the older shapes stay, so that older lines can be
read. Speeds are in seconds, and a ratio above 1 means that ours is faster.
"""

import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from types import NoneType

from conformance.runs.run import cores

ROOT = Path(__file__).parents[1]
SCHEMA = 2
NUMBER, MAYBE = (int, float), (int, float, NoneType)
SHAPES: dict[int, dict] = {
    1: {
        **dict.fromkeys(("date", "commit", "machine", "python"), (str,)),
        **dict.fromkeys(("schema", "gflops"), (int,)),
        "versions": dict.fromkeys(("numpy", "torch", "jax", "flax"), (str,)),
        "speed": [
            {
                **dict.fromkeys(("work", "against"), (str,)),
                **dict.fromkeys(("ours", "theirs", "ratio", "low", "high", "of_peak"), NUMBER),
                "floor": MAYBE,
            }
        ],
        "memory": [{"work": (str,), "mib": MAYBE, "at_most": MAYBE}],
        "growth": [{"work": (str,), "ratio": MAYBE, "at_most": NUMBER}],
        "compile": [{"work": (str,), "seconds": NUMBER, "at_most": NUMBER}],
    }
}
SHAPES[2] = SHAPES[1] | {
    "overhead": [
        {
            **dict.fromkeys(("work", "against"), (str,)),
            **dict.fromkeys(("ours", "theirs", "micros", "at_most"), NUMBER),
        }
    ]
}


def origin() -> dict:
    """Say when a run was made, of which commit, and on what machine."""
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": ", ".join([f"{cores()} cores", *_threads(), _cpu(), platform.platform()]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in SHAPES[SCHEMA]["versions"]},
    }


def append(path: Path, report: dict) -> None:
    """Add a run as one line.

    Raises ValueError, and writes nothing, where the report does not have the shape.
    """
    line = json.dumps(report)
    parse(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(line + "\n")


def read(path: Path) -> list[dict]:
    """Return every run, the oldest first.

    Raises ValueError with the line's number where a line is not JSON or not of its shape.
    """
    runs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            runs.append(parse(line))
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error
    return runs


def parse(line: str) -> dict:
    """Return one run. Raises ValueError where it is not JSON or not of its shape."""
    run = json.loads(line, parse_constant=_refuse)
    number = run.get("schema") if isinstance(run, dict) else None
    if number not in SHAPES:
        raise ValueError(f"schema must be one of {', '.join(map(str, SHAPES))}: got {number!r}")
    _check(run, SHAPES[number], "run")
    return run


def _refuse(constant: str) -> None:
    raise ValueError(f"a number must be finite: got {constant}")


def _check(value, shape, where: str) -> None:
    """Compare a value with its shape: a dict, a list of one shape, or a tuple of types."""
    kinds = shape if isinstance(shape, tuple) else (type(shape),)
    if type(value) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{where} must be {names}: got {value!r}")
    if isinstance(shape, list):
        for at, item in enumerate(value):
            _check(item, shape[0], f"{where}[{at}]")
    elif isinstance(shape, dict):
        if value.keys() != shape.keys():
            wanted, got = (", ".join(sorted(keys)) for keys in (shape, value))
            raise ValueError(f"{where} must have the keys {wanted}: got {got}")
        for name, item in value.items():
            _check(item, shape[name], f"{where}.{name}")


def commit() -> str:
    """Return the commit, with "-dirty" behind it where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _threads() -> list[str]:
    """Return the limit of threads, where there is one: it may be below the number of cores."""
    limit = os.environ.get("OMP_NUM_THREADS")
    return [f"OMP_NUM_THREADS={limit}"] if limit else []


def _cpu() -> str:
    """Return the processor's model, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", errors="replace").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
