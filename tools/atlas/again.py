"""Ask a sample of the questions again, by calls that share no line with the adapters.

    python -m tools.atlas.again jax-nn/empty torch-sdpa/true

An adapter that changes what it is to hand on gives the library an answer of its own; here nothing
of the adapters is used, so such an answer differs.
"""

import json
import random
import sys
import warnings

import numpy as np

from . import direct
from .question import OwnMask, Question
from .questions import QUESTIONS

CELLS = 24
TAKEN = {"mask", "bias", "additive", "causal", "softcap"}


def askable(peer: str, question: Question, answer: dict) -> bool:
    """Whether the calls here can put a question: the output of one call, and nothing special.

    NaN reaches the fast path's keys by an overflow alone, which is the adapter's art.
    """
    finite = all(np.isfinite(x).all() for x in question.inputs)
    fits = question.how == "attention" and set(question.given) <= TAKEN
    return fits and answer["kind"] in ("took", "refused") and (finite or "fast" not in peer)


def sample(peers: dict[str, dict], seed: str) -> list[tuple[str, str]]:
    """Return some of the cells that can be asked again, the same for the same seed."""
    cells = sorted(
        (peer, name)
        for peer, found in peers.items()
        for name, answer in found["answers"].items()
        if peer in direct.CALLS and askable(peer, QUESTIONS[name], answer)
    )
    return sorted(random.Random(seed).sample(cells, min(CELLS, len(cells))))


def given(peer: str, question: Question) -> dict:
    """Return what is handed over."""
    found = {}
    for name, value in question.given.items():
        if isinstance(value, OwnMask):
            value = ~value.allowed if peer.startswith(direct.HIDES) else value.allowed
            if peer == "transformers-eager":
                value = np.where(value, 0, -np.inf).astype(question.inputs[0].dtype)
        if name == "additive":
            name = "bias" if peer.startswith(direct.BIASES) else "mask"
        found[name] = value
    return found


def ask(peer: str, question: Question) -> str:
    """Return the answer's name, as the atlas would have it; of an error also the type."""
    call, settings = direct.CALLS[peer]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            output = call(*question.inputs, **given(peer, question), **settings)
    except Exception as error:
        return f"refused, {type(error).__name__}"
    return question.recognise(np.asarray(output, question.inputs[0].dtype)) or "other"


def word(answer: dict) -> str:
    """Return what `ask` has to give for an answer of the atlas."""
    took = answer.get("took", "other")
    return f"{took}, {answer['error']}" if "error" in answer else took


def differences(data: dict) -> list[str]:
    """Return where a sampled cell was answered otherwise when it was asked again, or not asked."""
    if not data["again"]:
        return ["no cell was asked again"]
    told = []
    for cell, took in data["again"].items():
        peer, _, question = cell.partition("/")
        said = word(data["peers"].get(peer, {}).get("answers", {}).get(question, {}))
        if took != said:
            told.append(f"{cell}: the atlas says {said}, asked again it is {took}")
    cells = ["/".join(cell) for cell in sample(data["peers"], data["measured"])]
    return told + [f"{cell}: not asked again" for cell in cells if cell not in data["again"]]


def main() -> int:
    """Print what is answered, as JSON."""
    cells = [cell.split("/") for cell in sys.argv[1:]]
    print(json.dumps({f"{peer}/{name}": ask(peer, QUESTIONS[name]) for peer, name in cells}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
