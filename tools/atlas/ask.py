"""Ask one library every question, in a process of its own: a line of JSON an answer.

    python -m tools.atlas.ask torch-sdpa package.module:Class answers.jsonl

A line is written as soon as it is known, so that a process that dies leaves what it had found.
"""

import json
import math
import re
import sys
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from conformance import subjects
from conformance.subjects.adapter import mask_polarity, pointed
from conformance.subjects.protocol import CAPABILITIES, NotOffered, check_capabilities

from .question import OwnMask, Question
from .questions import QUESTIONS

HINTS = {"causal"}  # such as torch.nn.MultiheadAttention's, which wants a mask beside it
LONGEST = 24  # numbers that are kept of an answer without a name


def main(arguments: list[str] | None = None) -> int:
    """Ask the questions, or those whose names are given after the file."""
    peer, path, out, *names = sys.argv[1:] if arguments is None else arguments
    adapter = load(path)
    with Path(out).open("w", encoding="utf-8") as file:
        print(json.dumps({"peer": peer, "versions": versions(adapter)}), file=file, flush=True)
        for name in names or QUESTIONS:
            found = ask(adapter, QUESTIONS[name])
            line = json.dumps({"peer": peer, "question": name} | found, ensure_ascii=False)
            print(line, file=file, flush=True)
    return 0


def load(path: str) -> Any:
    """Return an adapter on the CPU."""
    adapter = subjects.find(path)
    return adapter("cpu") if hasattr(adapter, "devices") else adapter()


def versions(adapter: Any) -> dict[str, str]:
    return dict(adapter.versions()) if hasattr(adapter, "versions") else {}


def ask(adapter: Any, question: Question) -> dict:
    """Return what a library answers, by which path, and what became of the mask on the way."""
    adapter.did, adapter.path = (), ""
    found = answer(adapter, question)
    if found["kind"] != "not offered":
        found |= {n: x for n, x in (("path", adapter.path), ("adapter", list(adapter.did))) if x}
    return found


def answer(adapter: Any, question: Question) -> dict:
    """Return an alternative by name, a refusal, or numbers."""
    try:
        require(adapter, question)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            output = HOW[question.how](adapter, question)
    except NotOffered as error:
        return {"kind": "not offered", "text": first_line(error)}
    except Exception as error:
        told = {"error": type(error).__name__, "text": refusal(error)}
        return {"kind": "refused", "took": "refused"} | told
    took = question.recognise(output)
    if took is not None:
        return {"kind": "took", "took": took}
    return {"kind": "other", "numbers": plain(question.measure(output))}


def require(adapter: Any, question: Question) -> None:
    """Raise NotOffered where the adapter lacks what the question needs."""
    offered = check_capabilities(getattr(adapter, "capabilities", ["attention"]), CAPABILITIES)
    offered |= set(getattr(adapter, "dtypes", ["float32"])) | arguments_of(adapter)
    for need in question.needs:
        if need not in offered:
            raise NotOffered(f"no {need}")


def arguments_of(adapter: Any) -> set[str]:
    """Return what an adapter hands on though it does not declare it: a hint is no capability."""
    call, further = getattr(adapter, "call", None), set(getattr(adapter, "further", ()))
    return further if call is None else further | HINTS & set(signature(call).parameters)


def given(adapter: Any, question: Question) -> dict:
    """Return what is handed over, masks of the library's own kind made to point its way."""
    dtype = question.inputs[0].dtype
    found = {
        name: pointed(value.allowed, mask_polarity(adapter), dtype)
        if isinstance(value, OwnMask)
        else value
        for name, value in question.given.items()
    }
    if "additive" in found:
        offered = "bias" in getattr(adapter, "capabilities", [])
        argument = "bias" if offered else "mask"
        found[argument] = found.pop("additive")
        tell(adapter, f"given as its {argument}")
    if mask_polarity(adapter) == "add" and any(
        isinstance(x, OwnMask) for x in question.given.values()
    ):
        tell(
            adapter, "0 and -inf made by the suite: the library adds its mask, and has another own"
        )
    return found


def tell(adapter: Any, text: str) -> None:
    """Say what was done to a mask."""
    adapter.did = tuple(dict.fromkeys((*adapter.did, text)))


def attention(adapter: Any, question: Question) -> np.ndarray:
    return np.asarray(adapter.attention(*question.inputs, **given(adapter, question)))


def weights(adapter: Any, question: Question) -> np.ndarray:
    """Return the weights; and say if they are not those that made the output."""
    output, weights = weighted(adapter, question)
    if output is not None:
        made = np.asarray(weights, float) @ question.inputs[2]
        if not np.allclose(made, np.asarray(output, float), rtol=1e-4, equal_nan=True):
            tell(adapter, "the weights are not those that made the output")
    return np.asarray(weights)


def weighted(adapter: Any, question: Question) -> tuple:
    """Return output and weights; an adapter with steps has both among them."""
    options = given(adapter, question)
    if hasattr(adapter, "weights"):
        return adapter.weights(*question.inputs, **options)
    steps = adapter.steps(*question.inputs, **options)
    return steps["output"], steps["weights"]


def both(adapter: Any, question: Question) -> np.ndarray:
    """Return the output without the weights asked for, and with."""
    without, (output, _) = without_weights(adapter), weighted(adapter, question)
    return np.stack([attention(without, question), np.asarray(output)])


def without_weights(adapter: Any) -> Any:
    """Return the adapter of the same without weights: what a variant with weights is made from."""
    for kind in type(adapter).__mro__[1:]:
        offered = getattr(kind, "capabilities", ())
        if "attention" in offered and "weights" not in offered:
            return kind()
    return adapter


def gradients(adapter: Any, question: Question) -> np.ndarray:
    options = given(adapter, question)
    found = adapter.gradients(*question.inputs, options.pop("grad"), **options)
    return np.stack([np.asarray(found[name]) for name in ("query", "key", "value")])


def lse(adapter: Any, question: Question) -> np.ndarray:
    return np.asarray(adapter.lse(*question.inputs, **given(adapter, question)))


def rotary(adapter: Any, question: Question) -> np.ndarray:
    """Return the query as it is turned, by the pairs of features that the library has."""
    return np.asarray(adapter.rotary(*question.inputs, **question.given, interleaved=None)[0])


def decode(adapter: Any, question: Question) -> np.ndarray:
    """Return the output of the last call that feeds tokens."""
    (tokens,), options = question.inputs, question.given
    config = {"embed_dim": 2, "num_heads": 2}
    decoding = adapter.decoding(config, options["parameters"], 1, options["capacity"])
    first = 0
    for last in options["cuts"]:
        output = decoding.feed(tokens[:, first:last])
        first = last
    return np.asarray(output)


HOW = {
    "attention": attention,
    "weights": weights,
    "both": both,
    "gradients": gradients,
    "lse": lse,
    "rotary": rotary,
    "decode": decode,
}


def refusal(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text; Keras says where first, and then what."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        return " ".join(lines[:2])
    return lines[0] if lines else ""


def plain(array: np.ndarray) -> dict:
    """Return an array's shape and first numbers; what JSON has no number for as a text."""
    numbers = np.asarray(array, np.float64).ravel()[:LONGEST].tolist()
    shown = [float(f"{x:.5g}") if math.isfinite(x) else str(x) for x in numbers]
    return {"shape": list(np.shape(array)), "first": shown}


if __name__ == "__main__":
    sys.exit(main())
