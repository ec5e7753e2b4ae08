"""One question's section of the page: the call, the answers and who gives them, what others say."""

import numpy as np

from conformance.contract import clauses

from .markdown import beside, drawn, folded, numbers, table
from .matrix import by_clause, how
from .question import OwnMask, Question, meaning
from .snippets import Snippet
from .sources import about

MANY = 10  # to be listed by name, who gives no answer
TEXT = 70, 90  # of a long refusal, its beginning and its end, where the rule stands in some


def section(question: Question, peers: dict[str, dict], snippet: Snippet | None, said: dict) -> str:
    """Return a section; `said` is what the snippet printed."""
    clause = clauses()[question.clause]
    found = {name: answer_of(peer, question.name) for name, peer in peers.items()}
    parts = [
        f"### {question.title}",
        f"{question.sentence} {question.numbers}",
        call(question),
        answers(question, found),
        *notes(found),
        *elsewhere(question, found, peers),
        *ways(found),
        *example(snippet, said),
        f"The contract, [{clause.id}](../conformance/CONTRACT.md#{clause.profile}): "
        f"{clause.sentence}",
        *threads(question.name, peers),
    ]
    return "\n\n".join(part for part in parts if part)


def answer_of(peer: dict, question: str) -> dict:
    """Return a peer's answer; one that is lacking says why."""
    if question in peer["answers"]:
        return peer["answers"][question]
    if peer["missing"]:
        return {"kind": "not installed", "text": f"not installed: {', '.join(peer['missing'])}"}
    return {"kind": "no answer", "text": peer["failed"] or "not asked"}


def call(question: Question) -> str:
    """Return what is handed over beside the inputs, drawn; one head of each sample."""
    if question.how == "decode":
        return ""
    blocks = []
    for name, value in question.given.items():
        if name in ("seed", "grad"):
            continue
        own = isinstance(value, OwnMask)
        array = value.allowed if own else value
        if not isinstance(array, np.ndarray):
            blocks.append(f"{name} = {array}")
            continue
        name = {"additive": "added to the scores"}.get(name, name)
        title = f"{name} {array.shape}, {array.dtype}"
        title += ", ■ may be seen" if own else ""
        blocks.append(f"{title}\n{parts_of(array)}")
    return f"```text\n{beside(blocks)}\n```" if blocks else ""


def parts_of(array: np.ndarray) -> str:
    """Return an array by its leading axes, equal parts once."""
    flat = array.reshape(-1, *array.shape[-2:])
    unique = [part for i, part in enumerate(flat) if not any(_same(part, x) for x in flat[:i])]
    return beside([drawn(part) for part in unique], "   ")


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one, other))


def answers(question: Question, found: dict[str, dict]) -> str:
    """Return the table of answers: what it is called, what it gives, and who gives it."""
    gives: dict[str, list[np.ndarray]] = {question.contract: []}
    for name, array in question.alternatives():
        gives.setdefault(name, []).append(array)
    gives.setdefault("refused", [])
    rows = []
    for name, given in gives.items():
        takers = [peer for peer, answer in found.items() if answer.get("took") == name]
        right = name == question.contract
        if takers or right or (name != "refused" and len(gives) <= 8):
            title = f"**{name}** (the contract)" if right else name
            cells = [meaning(name), shown(question, name, given), named(takers) or "nobody"]
            rows.append([title, *cells])
    others: dict[str, list[str]] = {}
    for peer, answer in found.items():
        if answer["kind"] == "other":
            first, shape = (answer["numbers"][name] for name in ("first", "shape"))
            text = f"{', '.join(map(str, first)) or 'nothing'} in shape {tuple(shape)}"
            others.setdefault(text, []).append(peer)
    rows += [["other", "none of these", text, named(takers)] for text, takers in others.items()]
    return table(["answer", "which is", "gives", "who"], rows)


def shown(question: Question, name: str, given: list[np.ndarray]) -> str:
    """Return the numbers of an alternative."""
    if name in question.gives:
        return question.gives[name]
    return " or ".join(dict.fromkeys(map(laid_out, given))) or "an error"


def laid_out(answer: np.ndarray) -> str:
    """Return an answer's numbers in order, by sample and head where these differ.

    >>> laid_out(np.array([[[[1.0], [7.0]], [[1.0], [7.0]]]]))
    '1, 7'
    """
    if not answer.size:
        return f"shape {answer.shape}"
    if answer.ndim < 3:
        return numbers(answer)
    if _alike(answer, np.broadcast_to(answer[..., :1], answer.shape)):
        answer = answer[..., :1]  # features that are alike are said once
    parts = [answer]
    names = ["sample", "head"][: answer.ndim - 2]
    labels = [""]
    for word in names:
        split = [list(part) for part in parts]
        if all(_alike(part[0], other) for part in split for other in part):
            parts = [part[0] for part in split]
        else:
            labels = [
                f"{a} {word} {i}".strip()
                for a, p in zip(labels, split, strict=True)
                for i in range(len(p))
            ]
            parts = [other for part in split for other in part]
    texts = [numbers(part) for part in parts]
    return "; ".join(f"{a}: {t}" if a else t for a, t in zip(labels, texts, strict=True))


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one, other, equal_nan=True))


def named(peers: list[str]) -> str:
    return ", ".join(f"`{peer}`" for peer in peers)


def notes(found: dict[str, dict]) -> list[str]:
    """Return what the refusals say, and who was not asked."""
    lines: list[str] = []
    refusals: dict[str, list[str]] = {}
    for peer, answer in found.items():
        if answer["kind"] == "refused":
            refusals.setdefault(shortened(answer["text"]), []).append(peer)
    if refusals:
        said = [f"- {named(peers)}: `{text}`" for text, peers in refusals.items()]
        lines.append("What the refusals say:\n\n" + "\n".join(said))
    for kind in ("not offered", "not installed", "no answer"):
        peers = [peer for peer, answer in found.items() if answer["kind"] == kind]
        if kind == "not offered" and len(peers) > MANY:
            lines.append(f"Not offered: the other {len(peers)}.")
        elif peers:
            why = {found[peer]["text"] for peer in peers} if kind == "no answer" else set()
            more = f" ({'; '.join(sorted(why))})" if why else ""
            lines.append(f"{kind.capitalize()}: {named(peers)}{more}.")
    return lines


def elsewhere(question: Question, found: dict[str, dict], peers: dict[str, dict]) -> list[str]:
    """Return who is right here and does not keep the question's clause in other cases."""
    said: dict[str, list[str]] = {}
    for name, answer in found.items():
        results = by_clause(peers[name]["contract"]["results"]).get(question.clause, [])
        if answer.get("took") == question.contract and (text := how(results)):
            said.setdefault(text, []).append(name)
    if not said:
        return []
    lines = [f"- {named(names)}: {text}" for text, names in said.items()]
    rule = f"As the contract wants it here, but not in every case of {question.clause}:"
    return [rule + "\n\n" + "\n".join(lines)]


def ways(found: dict[str, dict]) -> list[str]:
    """Return by which of its paths a library answered, and what became of the mask on the way."""
    rows: dict[tuple[str, str], list[str]] = {}
    for peer, answer in found.items():
        path, did = answer.get("path", ""), "; ".join(answer.get("adapter", []))
        if path or did:
            rows.setdefault((path, did), []).append(peer)
    if not rows:
        return []
    cells = [[named(peers), *way] for way, peers in rows.items()]
    lines = table(["who", "path", "what the adapter did, or saw"], cells)
    return [folded("Which path answered, and what became of the mask on the way", lines)]


def shortened(text: str) -> str:
    text = " ".join(text.split()).replace("`", "'")
    first, last = TEXT
    if len(text) <= first + last:
        return text
    return f"{text[:first].rstrip()} ... {text[-last:].lstrip()}"


def example(snippet: Snippet | None, said: dict) -> list[str]:
    """Return a snippet and what it printed."""
    if snippet is None:
        return []
    parts = [f"{snippet.says}", f"```python\n{snippet.code}\n```"]
    if snippet.question not in said:
        return [*parts, f"(Not run: it needs {', '.join(snippet.missing)}.)"]
    output = said[snippet.question]
    return [*parts, f"```text\n{output['failed'] or output['output']}\n```"]


def threads(question: str, peers: dict[str, dict]) -> list[str]:
    """Return the upstream threads."""
    lines = []
    for thread in about(question):
        lines.append(f"- [{thread.label}]({thread.url}) ({thread.state}): {thread.title}")
        lines += [f"  - {thread.note}"] if thread.note else []
    return ["Upstream:\n\n" + "\n".join(lines)] if lines else []
