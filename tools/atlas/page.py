"""The page: docs/atlas.md, from what was measured and nothing else."""

from itertools import combinations

import numpy as np

from conformance.contract import clauses
from conformance.subjects.peers import PEERS

from .glance import glance, in_short, index
from .markdown import evenly, folded, number, numbers, table
from .matrix import LEGEND, SYMBOLS, by_clause, how, shown_profiles, verdicts
from .numbers import NUMBERS, inputs
from .question import Question, reading
from .questions import QUESTIONS
from .section import named, section
from .snippets import snippets
from .variants import against_themselves

COLUMNS = 9  # of clauses in a table


def page(data: dict) -> str:
    """Return the page as Markdown."""
    peers = data["peers"]
    parts = [
        "# Atlas of masked attention",
        opening(data),
        "## What was measured",
        measured(peers),
        installing(),
        "## At a glance",
        "Of the libraries that a question can be put to, so many have a variant that does this:",
        in_short(peers),
        "One word a cell; the heads lead to the questions, where the words are explained and "
        "everyone's answer can be followed by hand. – is not offered.",
        glance(peers),
        "## The questions",
        index(peers),
        "### The usual numbers",
        usual_numbers(),
        *question_sections(data),
        "## The contract, clause by clause",
        *contract_run(peers),
        "## Each against itself",
        *against_themselves(peers),
        "## How an answer is recognised, and what is not measured",
        RECOGNISED.format(again=len(data["again"])),
    ]
    return "\n\n".join(parts) + "\n"


def opening(data: dict) -> str:
    installed = [peer for peer in data["peers"].values() if not peer["missing"]]
    count, asked = len(installed), len(QUESTIONS)
    return (
        f"What {count} of today's attention functions and layers do with masks, asked of the "
        f"libraries themselves: {asked} calls small enough to follow by hand, and every clause of "
        f"[the contract](../conformance/CONTRACT.md) that they offer to keep. It was measured on "
        f"{data['measured']} with Python {data['python']} on a CPU, in the versions listed below, "
        "and nothing here is taken from documentation. To measure it again: `nox -s atlas`, or "
        "`python -m tools.atlas --page docs/atlas.md` where the libraries are installed."
    )


def measured(peers: dict[str, dict]) -> str:
    rows = []
    for name, peer in peers.items():
        versions = ", ".join(f"{package} {v}" for package, v in peer["versions"].items())
        absent = f"not installed: {', '.join(peer['missing'])}" if peer["missing"] else ""
        rows.append([f"`{name}`", peer["about"], absent or versions or peer["failed"]])
    return table(["name", "what it is", "version"], rows)


def installing() -> str:
    """Return how to get what the snippets import."""
    packages = dict.fromkeys(name for peer in PEERS.values() for name in peer.packages)
    return (
        f"The snippets below need what they import: `python -m pip install {' '.join(packages)}`, "
        "with `-c constraints.txt` in a clone of this repository for the versions above."
    )


def themes() -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for question in QUESTIONS.values():
        found.setdefault(question.theme, []).append(question)
    return found


def usual_numbers() -> str:
    """Return the numbers that most questions share, and the answer of every set of keys."""
    given = inputs(T=1)
    sets = [keys for count in (1, 2, 3) for keys in combinations(range(3), count)]
    allowed = [np.isin(range(3), keys) for keys in sets]
    head = ["may see", *(", ".join(f"key {key}" for key in keys) for keys in sets)]
    row = ["gives", *(numbers(reading(given, own)[0, 0]) for own in allowed)]
    return f"{NUMBERS}\n\n{table(head, [row])}\n\n{EMPTY_ROW}"


def question_sections(data: dict) -> list[str]:
    known = {snippet.question: snippet for snippet in snippets()}
    parts = []
    for theme, asked in themes().items():
        parts.append(f"## {theme}")
        parts += [
            section(question, data["peers"], known.get(question.name), data["snippets"])
            for question in asked
        ]
    return parts


def contract_run(peers: dict[str, dict]) -> list[str]:
    """Return the tables of peers by clauses, a profile each, and what the differences are."""
    results = {name: peer["contract"]["results"] for name, peer in peers.items()}
    found = {name: verdicts(own) for name, own in results.items()}
    shown = shown_profiles(found)
    legend = "; ".join(f"{SYMBOLS[word]} {text}" for word, text in LEGEND.items())
    hidden = [p for p in dict.fromkeys(c.profile for c in clauses().values()) if p not in shown]
    parts = [
        "The suite itself, run on every library: a clause has many cases, random and larger than "
        f"the questions above. {legend}. To tell ◐ from ○, what fails is run again with such rows "
        "opened before the call and set to the contract's answer after it. A library without a "
        f"row offers nothing of a chapter, and none offers anything of {', '.join(hidden)}.",
        *states(peers),
    ]
    for profile, ids in shown.items():
        parts.append(f"### {profile.capitalize()}")
        parts += [_matrix(found, part) for part in evenly(ids, COLUMNS)]
        parts.append(_sentences(ids))
        parts += _differences(results, ids)
    failed = {name: peer["contract"]["failed"] for name, peer in peers.items()}
    return [*parts, *(f"No run of `{name}`: {why}." for name, why in failed.items() if why)]


def states(peers: dict[str, dict]) -> list[str]:
    """Return when the suite ran on whom, and of which commit it was."""
    found: dict[tuple, list[str]] = {}
    for name, peer in peers.items():
        if of := peer["contract"].get("of"):
            found.setdefault((of["date"], of["commit"]), []).append(name)
    said = [f"on {date}, at commit {commit}" for date, commit in found]
    if len(said) < 2:
        return [f"It ran {said[0]}."] if said else []
    lines = [f"- {text}: {named(own)}" for text, own in zip(said, found.values(), strict=True)]
    return ["It ran\n\n" + "\n".join(lines)]


def _matrix(found: dict[str, dict[str, str]], ids: list[str]) -> str:
    rows = []
    for name, own in found.items():
        words = [own.get(id, "not offered") for id in ids]
        if set(words) != {"not offered"}:
            rows.append([f"`{name}`", *(SYMBOLS[word] for word in words)])
    return table(["", *ids], rows)


def _sentences(ids: list[str]) -> str:
    lines = (f"- {id}: {clauses()[id].sentence}" for id in ids)
    return folded("The clauses", "\n".join(lines))


def _differences(results: dict[str, list[dict]], ids: list[str]) -> list[str]:
    rows = []
    for name, own in results.items():
        cases = by_clause(own)
        said = {id: how(cases[id]) for id in ids if id in cases}
        rows += [[f"`{name}`", id, text] for id, text in said.items() if text]
    if not rows:
        return []
    return [folded("What the differences are", table(["", "clause", "how"], rows))]


EMPTY_ROW = (
    "The mean over all keys, which is what some give to a fully masked row, is 37. Masks "
    "are drawn a row a query, ■ for True. A question asks for the contract's answer too; it is "
    '"refused" where several readings are in use, so that a library that answers has taken one.'
)
RECOGNISED = f"""\
Every alternative's answer is computed in float64 by the suite's own formula, with the mask read the
way the alternative says; nothing is typed in. A library's answer is an alternative's if it has its
shape and equals it within {number(2e-5)} relative in float32 and {number(2e-2)} in 16 bits, NaN
where NaN; within a question no two alternatives are that close, and a test holds that. An error is
a refusal, whatever its kind. Anything else is printed as "other", with its numbers.

"Not offered" is what a library has no argument for, not what it does badly. A module, such as a
multi-head attention, is asked through projections that are the identity. A mask goes to the
library's own argument; what became of it on the way, and which of the library's paths answered, is
said under each question. A mask that "points the library's way" is boolean, True for what the
library reads it as, or 0 and -inf where the library only adds. A path is known by a spy on the
function that it goes by, such as PyTorch's native one for the layer's fast path.

A sample of the answers is asked once more in every session, by calls that share no line with the
adapters ({{again}} in this one); the session fails where one of them differs.

Not measured: anything but a CPU; compiled and fused kernels that only exist on accelerators (flash
attention, cuDNN, Triton; splash attention is interpreted here); speed; whole models; what a library
does under automatic mixed precision; MLX, Haiku, tokamax and other libraries that are not in the
list above. Upstream threads were read in stored copies, and are shown with the state that they had
there; a thread may speak of another version than the one measured.
"""
