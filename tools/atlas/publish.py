"""The answers as data: docs/atlas.json, from what the page is written from.

    {"measured": "2026-11-27", "python": "3.11.7",
     "libraries": {"torch": {"name": "PyTorch", "version": "2.13.0"}, ...},
     "questions": {"true": {"title": ..., "contract": "refused", "answers": {...}}, ...},
     "peers": {"torch-sdpa": {"library": "torch", "about": ..., "conversion": {"line": ...},
                              "answers": {"true": ...}}, ...}}

An answer has the `word` that the page's tables use, and its name among the question's `answers`,
where stands what it `means` and `gives`; a refusal has its `text`. `path` says which of the
library's paths answered, `adapter` what was done to the mask before it arrived.
"""

import json
from collections.abc import Iterable

from .conversions import conversions
from .glance import SHORT, word
from .question import Question, meaning
from .questions import QUESTIONS
from .section import answer_of, shortened, shown
from .variants import LIBRARIES

QUESTION = ("title", "theme", "sentence", "numbers", "clause", "contract")
LINE = ("name", "layout", "line")
KEPT = ("path", "adapter")


def published(data: dict) -> dict:
    """Return what is told of the libraries, in plain data."""
    peers = data["peers"]
    return {
        "measured": data["measured"],
        "python": data["python"],
        "libraries": libraries(peers.values()),
        "questions": {
            name: {field: getattr(question, field) for field in QUESTION}
            | {"word": SHORT.get(question.contract, question.contract), "answers": known(question)}
            for name, question in QUESTIONS.items()
        },
        "peers": {
            name: {field: peer[field] for field in ("library", "about", "versions")}
            | {"conversion": conversion(name)}
            | {"answers": {q: told(answer_of(peer, q)) for q in QUESTIONS}}
            for name, peer in peers.items()
        },
    }


def conversion(peer: str) -> dict:
    """Return the line that takes a mask to a peer, and the layout of what stands beside it."""
    own = conversions().get(peer)
    return {} if own is None else {field: getattr(own, field) for field in LINE}


def libraries(peers: Iterable[dict]) -> dict[str, dict]:
    """Return every library's name and version."""
    return {
        peer["library"]: {
            "name": LIBRARIES.get(peer["library"], peer["library"]),
            "version": peer["versions"].get(peer["library"], "").partition("+")[0],
        }
        for peer in peers
    }


def known(question: Question) -> dict[str, dict]:
    """Return what a question's answers mean and give."""
    given: dict[str, list] = {question.contract: [], "refused": []}
    for name, array in question.alternatives():
        given.setdefault(name, []).append(array)
    return {
        name: {"means": meaning(name), "gives": shown(question, name, arrays)}
        for name, arrays in given.items()
    }


def told(answer: dict) -> dict:
    """Return one answer."""
    found = {"kind": answer["kind"], "word": word(answer)}
    if "took" in answer:
        found["answer"] = answer["took"]
    if answer["kind"] == "other":
        found["gives"] = ", ".join(map(str, answer["numbers"]["first"]))
    if "text" in answer:
        found["text"] = shortened(answer["text"])
    return found | {field: answer[field] for field in KEPT if answer.get(field)}


def text(data: dict) -> str:
    """Return it as JSON, a line for what is short."""
    return json.dumps(published(data), ensure_ascii=False, indent=1) + "\n"
