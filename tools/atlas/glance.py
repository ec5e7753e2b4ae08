"""At a glance: what stands out, one word a cell, and how many answer what."""

from .markdown import anchor, table
from .questions import QUESTIONS
from .section import answer_of

GLANCE = {
    "true": "True is",
    "float-inf": "0 / -inf mask",
    "rank-2": "(B, S), B = T",
    "empty": "fully masked row",
    "gradient-others": "others' gradients",
    "causal-one-query": "causal, T = 1",
    "mask-and-causal": "mask and causal",
    "nan-value": "NaN in hidden V",
}
STANDS_OUT = [
    ("nan-value", "poisoned", "let NaN in a hidden value reach the output"),
    ("empty", "zero", "give 0 for a fully masked row"),
    ("empty", "mean", "give it the mean of all values, hidden ones too"),
    ("empty", "nan", "give it NaN"),
    ("gradient-others", "nan", "let such a row spoil the gradients of the others"),
    ("gradient-1e9", "S times", "give gradients S times too large for a row filled with -1e9"),
    ("float-inf", "cast", "turn a float mask of 0 and -inf round, without a word"),
    ("int-10", "added", "add a mask of integers to the scores, and so hide nothing"),
    ("rank-2", "queries by keys", "read a (B, S) mask as (T, S) where B = T"),
    ("causal-one-query", "top-left", "let one query with the causal flag see the first key alone"),
    ("causal", "unmasked", "hide nothing by the causal flag alone"),
    ("mask-and-causal", "only the mask", "drop the causal flag where there is a mask"),
    ("half-empty", "unmasked-row", "give such a row everything in float16"),
    ("grouped", "tiled", "give query heads other key heads than the rest do"),
    ("window", "n keys", "count the query's own key among those of a window"),
    ("lse", "finite", "give the log-sum-exp of a fully masked row as a finite number"),
    ("rotary", "interleaved", "turn feature 2i with 2i + 1, and not with i + D/2"),
    ("overflow", "last slot", "overwrite the last token of a full cache, without a word"),
]
SHORT = {
    "queries by keys": "(T, S)",
    "key padding": "(B, S)",
    "cast": "inverted",
    "unmasked-row": "unmasked",
    "right": "fine",
    "nan": "NaN",
    "poisoned": "NaN",
}
ANSWERED = ("took", "refused", "other")
KINDS = {"not offered": "–", "other": "other", "not installed": "?", "no answer": "?"}


def counted(peers: dict[str, dict], question: str) -> dict[str, tuple[int, int]]:
    """Return how many libraries give an answer, and how many variants of them; "" is all asked.

    A library counts where one of its variants answers so.
    """
    found: dict[str, list[str]] = {}
    for peer in peers.values():
        answer = answer_of(peer, question)
        if answer["kind"] in ANSWERED:
            for name in ("", answer.get("took") or answer["kind"]):
                found.setdefault(name, []).append(peer["library"])
    return {name: (len(set(own)), len(own)) for name, own in found.items()}


def in_short(peers: dict[str, dict]) -> str:
    """Return what stands out: of those who answer a question, how many answer so."""
    lines = []
    for name, took, text in STANDS_OUT:
        found = counted(peers, name)
        if took in found:
            (some, variants), (all_of, asked) = found[took], found[""]
            link = f"[{text}](#{anchor(QUESTIONS[name].title)})"
            lines.append(f"- {some} of {all_of} ({variants} of {asked} variants) {link}.")
    return "\n".join(lines)


def word(answer: dict) -> str:
    """Return an answer in one word."""
    took = answer.get("took")
    return SHORT.get(took, took) if took else KINDS[answer["kind"]]


def glance(peers: dict[str, dict]) -> str:
    asked = [QUESTIONS[name] for name in GLANCE]
    head = [f"[{GLANCE[q.name]}](#{anchor(q.title)})" for q in asked]
    rows = [["**the contract**", *(f"**{SHORT.get(q.contract, q.contract)}**" for q in asked)]]
    for name, peer in peers.items():
        rows.append([f"`{name}`", *(word(answer_of(peer, q.name)) for q in asked)])
    return table(["", *head], rows)


def index(peers: dict[str, dict]) -> str:
    """Return every question with what the contract answers, and how many answer what."""
    rows = []
    for question in QUESTIONS.values():
        found = counted(peers, question.name)
        order = sorted((name for name in found if name), key=lambda n: found[n], reverse=True)
        counts = ", ".join(f"{name} {found[name][0]} ({found[name][1]})" for name in order)
        title = f"[{question.title}](#{anchor(question.title)})"
        rows.append([question.theme, title, question.contract, counts])
    return table(
        ["", "question", "the contract", "how many libraries answer what (and variants)"], rows
    )
