"""A program in any language as an adapter: JSON lines in and out, as docs/pipe.md specifies them.

python -m conformance run --subject "pipe:./my_program"
"""

import base64
import os
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from math import isfinite, prod
from typing import Any

import numpy as np

from ..oracle.tolerance import Differs, dtype
from .program import RunningProgram
from .protocol import STEPS, NotOffered

VERSION = 1
SAID = ("name", "mask_polarity", "capabilities", "dtypes", "versions")
ANSWERS = {
    "attention": ("output",),
    "weights": ("output", "weights"),
    "steps": STEPS,
    "multihead": ("output", "weights"),
    "rotary": ("query", "key"),
}
LASTING = {"cache", "small_blocks"}  # longer than one question
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "bool")


class Pipe:
    """Hands every call on to a program; one that breaks off is started again for the next call."""

    def __init__(self, command: str):
        words = shlex.split(command, posix=os.name == "posix")
        if not words:
            raise ValueError("after `pipe:` stand a program and its arguments: got nothing")
        self.words, self.folder, self.ids = words, os.getcwd(), count(1)
        try:
            said = self.start()
        except Differs as error:
            raise ValueError(str(error)) from error
        self.name = said.get("name", os.path.basename(words[0]))
        self.mask_polarity = said.get("mask_polarity")
        self.capabilities = said.get("capabilities", ["attention"])
        self.dtypes = said.get("dtypes", ["float32"])
        self.told = said.get("versions", {})
        if lasting := LASTING & set(self.capabilities):
            rule = "a program may offer what one question and its answer hold"
            raise ValueError(f"{rule}: got {', '.join(sorted(lasting))}")

    def start(self) -> dict:
        """Start the program, and return what it says of itself."""
        self.program = RunningProgram(self.words, self.folder)
        said = self.program.wait_for_hello()
        if (version := said.pop("pipe", None)) != VERSION:
            rule = f'the first line must be an object with "pipe": {VERSION}'
            raise self.program.broken(rule, f'"pipe": {version!r}')
        if unknown := [name for name in said if name not in SAID]:
            raise self.program.broken(f"the first line holds {', '.join(SAID)}", ", ".join(unknown))
        return said

    def ask(self, call: str, **given) -> dict[str, Any]:
        """Put a question to the program, and return its answer's arrays by name."""
        question = {"id": next(self.ids), "call": call, **encoded(given)}
        if not self.program.runs:
            self.start()
        self.program.send(question)
        answer = self.program.wait_for_answer()
        if (own := answer.pop("id", None)) != question["id"]:
            raise self.program.broken(f"an answer must have the id {question['id']}", repr(own))
        if "error" in answer:
            raise RuntimeError(f"the program says: {answer['error']}")
        if missing := [name for name in ANSWERS.get(call, ()) if name not in answer]:
            rule = f"an answer to `{call}` must hold {', '.join(ANSWERS[call])}"
            raise Differs(f"{rule}: got no {', '.join(missing)}")
        return {name: decoded(value, name) for name, value in answer.items()}

    def versions(self) -> dict[str, str]:
        return self.told

    def attention(self, query, key, value, **options):
        return self.ask("attention", query=query, key=key, value=value, **options)["output"]

    def weights(self, query, key, value, **options):
        found = self.ask("weights", query=query, key=key, value=value, **options)
        return found["output"], found["weights"]

    def steps(self, query, key, value, **options):
        return self.ask("steps", query=query, key=key, value=value, **options)

    def gradients(self, query, key, value, grad, **options):
        return self.ask("gradients", query=query, key=key, value=value, grad=grad, **options)

    def rotary(self, query, key, positions, **options):
        found = self.ask("rotary", query=query, key=key, positions=positions, **options)
        return found["query"], found["key"]

    def parameters(self, config):
        return self.ask("parameters", config=config)

    def multihead(self, config, parameters, query, key, value, **options):
        options |= {"query": query, "key": key, "value": value}
        found = self.ask("multihead", config=config, parameters=parameters, **options)
        return found["output"], found["weights"]


def piped(command: str) -> Callable[[], Pipe]:
    """Return what starts a program as an adapter."""
    return partial(Pipe, command)


def encoded(given: Any) -> Any:
    """Return what is given as JSON has it; an array becomes an object.

    >>> encoded(np.array([[1, 2]], "int32"))
    {'dtype': 'int32', 'shape': [1, 2], 'data': 'AQAAAAIAAAA='}
    """
    if isinstance(given, Mapping):
        return {name: encoded(value) for name, value in given.items()}
    if isinstance(given, np.ndarray):
        data = base64.b64encode(given.tobytes()).decode()
        return {"dtype": given.dtype.name, "shape": list(given.shape), "data": data}
    if isinstance(given, np.generic):
        given = given.item()
    if isinstance(given, float) and not isfinite(given):
        raise NotOffered(f"a number of JSON is finite: got {given}")
    return given


def decoded(value: Any, name: str) -> np.ndarray | None:
    """Return the array that an object of an answer stands for; null is None."""
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data"}:
        got = ", ".join(value) if isinstance(value, dict) else repr(value)
        raise Differs(f"{name} must be an object with dtype, shape and data: got {got}")
    kind, shape = value["dtype"], value["shape"]
    if kind not in DTYPES:
        raise Differs(f"the dtype of {name} must be one of {', '.join(DTYPES)}: got {kind!r}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise Differs(f"the shape of {name} must be a list of sizes: got {shape!r}")
    try:
        data = base64.b64decode(value["data"], validate=True)
    except (TypeError, ValueError) as error:
        raise Differs(f"the data of {name} must be base64: got {error}") from error
    size = prod(shape) * dtype(kind).itemsize
    if len(data) != size:
        rule = f"{name} of shape {tuple(shape)} in {kind} has {size} bytes"
        raise Differs(f"{rule}: got {len(data)}")
    return np.frombuffer(data, dtype(kind)).reshape(shape)
