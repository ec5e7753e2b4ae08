"""Measure every peer: its answers and its contract run, each in a process.

Frameworks take each other's settings and a backend is chosen once a process, so every peer answers
in a process of its own; the contract run puts peers together that share packages and environment.
"""

import json
import platform
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import conformance
from benchmarks.history import commit
from conformance.contract import clauses
from conformance.reports.report import read, results
from conformance.subjects.peers import PEERS

from . import again
from .conversions import conversions
from .matrix import WRONG
from .processes import Jobs, in_pairs, run
from .snippets import Snippet, snippets

# What an adapter of somebody's own can offer anything of.
PROFILES = (
    "attention", "empty", "hygiene", "causal", "gradients", "half", "multihead", "cache",
)  # fmt: skip
WITHOUT_MASKED_ROWS = "tools.atlas.without_masked_rows:"
AGREEMENT = Path(conformance.__file__).with_name("test_agreement.py")
SLIM = ("clause", "case", "outcome", "took", "message", "dtype")
SECONDS = {"answers": 600, "contract": 3600, "snippet": 300}  # against a hang alone


@dataclass(frozen=True)
class Entry:
    """One peer, as it is measured: `subject` is what the suite's command line calls it."""

    name: str
    subject: str
    packages: tuple[str, ...]
    about: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [name for name in self.packages if not installed(name)]

    @property
    def group(self) -> tuple:
        """What peers have in common that can share a process."""
        return self.packages[0], tuple(sorted(self.environment.items()))


def installed(package: str) -> bool:
    """Whether a package is there, by the name that pip knows it by."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def listed(names: list[str]) -> list[Entry]:
    """Return peers of the registry."""
    found = []
    for name in names:
        peer = PEERS[name]
        found.append(Entry(name, name, peer.packages, peer.about, peer.environment))
    return found


def answers(entry: Entry, folder: Path) -> dict:
    """Return a peer's versions and its answers by question; those that are lacking say why."""
    out = folder / f"{entry.name}.answers.jsonl"
    words = ["-m", "tools.atlas.ask", entry.name, entry.subject, str(out)]
    out.unlink(missing_ok=True)
    _, failed = run(words, entry.environment, SECONDS["answers"])
    lines = out.read_text("utf-8").splitlines() if out.exists() else []
    header, *found = [json.loads(line) for line in lines] or [{"versions": {}}]
    by_question = {line["question"]: line for line in found}
    return {"versions": header["versions"], "answers": by_question, "failed": failed}


def contract(entries: list[Entry], folder: Path) -> dict[str, dict]:
    """Return the contract run's results by peer, or why there are none.

    A case that differs is run again on the peers without fully masked rows; its outcome there is
    `without_masked_rows`. `of` says when the suite ran, and of which commit it is.
    """
    out = folder / f"{entries[0].name}.report.jsonl"
    chosen = [f"--profile={profile}" for profile in PROFILES]
    found, failed = suite(entries, "", chosen, out)
    of = {"date": time.strftime("%Y-%m-%d"), "commit": commit()}
    if failed:
        return {entry.name: {"results": [], "failed": failed, "of": of} for entry in entries}
    wrong = {r["clause"] for r in found if r["outcome"] in WRONG}
    again = [f"--clause={id}" for id in sorted(wrong) if clauses()[id].profile != "empty"]
    without_masked_rows: list[dict] = []
    if again:
        without_masked_rows, failed = suite(
            entries, WITHOUT_MASKED_ROWS, again, out.with_suffix(".unmasked.jsonl")
        )
    outcomes = {(r["subject"], r["case"]): r["outcome"] for r in without_masked_rows}
    rows: dict[str, list[dict]] = {entry.name: [] for entry in entries}
    for result in found:
        row = {name: result[name] for name in SLIM}
        if result["outcome"] in WRONG:
            row["without_masked_rows"] = outcomes.get((result["subject"], result["case"]))
        rows[result["subject"]].append(row)
    return {name: {"results": own, "failed": failed, "of": of} for name, own in rows.items()}


def suite(
    entries: list[Entry], prefix: str, chosen: list[str], out: Path
) -> tuple[list[dict], str]:
    """Run the suite on some peers in one process; return the results, or why there are none."""
    out.unlink(missing_ok=True)
    words = ["-m", "conformance", "run", "--device", "cpu", "--report", str(out), *chosen]
    words += ["--ignore", str(AGREEMENT)]  # where peers are compared with each other
    for entry in entries:
        words += ["--subject", f"{prefix}{entry.subject}"]
    text, failed = run(words, entries[0].environment, SECONDS["contract"])
    out.with_suffix(".log").write_text(text, "utf-8")
    try:
        lines = read(out)
        dtypes = {line["case"]: line["dtype"] for line in lines if line["type"] == "case"}
        return [result | {"dtype": dtypes[result["case"]]} for result in results(lines)], ""
    except (OSError, ValueError) as error:
        return [], failed or str(error)


def printed(snippet: Snippet) -> dict:
    """Return what a snippet prints."""
    output, failed = run(["-c", snippet.code], {}, SECONDS["snippet"])
    return {"output": output.rstrip(), "failed": failed}


def said(module: str, words: list[str], entry: Entry, seconds: str) -> dict:
    """Return what a module prints as JSON in an entry's environment; `failed` says why not."""
    text, failed = run(["-m", module, *words], entry.environment, SECONDS[seconds])
    return {"found": json.loads(text.splitlines()[-1]) if text and not failed else {}} | {
        "failed": failed
    }


def converted(group: list[Entry]) -> dict:
    """Return what is wrong with the lines that convert a mask, by peer; "" is nothing."""
    known = [entry.name for entry in group if entry.name in conversions()]
    if not known:
        return {"found": {}, "failed": ""}
    return said("tools.atlas.conversions", known, group[0], "answers")


def asked_again(cells: list[tuple[str, str]], entry: Entry) -> dict:
    """Return the answers to questions that are asked again, by other code than the adapters'."""
    words = [f"{peer}/{question}" for peer, question in cells]
    return said("tools.atlas.again", words, entry, "answers")


def merged(parts: dict[str, dict]) -> dict:
    """Return what processes found as one; a process that failed has its reason under its name."""
    found: dict = {}
    for name, part in parts.items():
        found |= part["found"] | ({name: part["failed"]} if part["failed"] else {})
    return found


def collect(entries: list[Entry], folder: Path) -> dict:
    """Measure these peers, and return everything as plain data."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        if entry.missing:
            print(f"{entry.name}: not installed ({', '.join(entry.missing)})", file=sys.stderr)
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        if not entry.missing:
            groups.setdefault(entry.group, []).append(entry)
    found = in_pairs(measurements(list(groups.values()), folder))
    day = time.strftime("%Y-%m-%d")
    cells = again.sample(found["answers"], day)
    return {
        "measured": day,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peers": {entry.name: of_peer(entry, found) for entry in entries},
        "snippets": found["snippets"],
        "conversions": merged(found["conversions"]),
        "again": merged(in_pairs(second_askings(list(groups.values()), cells))["again"]),
    }


def measurements(groups: list[list[Entry]], folder: Path) -> Jobs:
    """Return what is to be done, the long ones first."""
    jobs: Jobs = {}
    for group in groups:
        jobs[partial(contract, group, folder)] = ("contract", group[0].name)
    for group in groups:
        for entry in group:
            jobs[partial(answers, entry, folder)] = ("answers", entry.name)
    for snippet in snippets():
        if not snippet.missing:
            jobs[partial(printed, snippet)] = ("snippets", snippet.question)
    for group in groups:
        jobs[partial(converted, group)] = ("conversions", group[0].name)
    return jobs


def second_askings(groups: list[list[Entry]], cells: list[tuple[str, str]]) -> Jobs:
    """Return the jobs that ask these cells again, one a group that has any."""
    jobs: Jobs = {}
    for group in groups:
        names = {entry.name for entry in group}
        if own := [cell for cell in cells if cell[0] in names]:
            jobs[partial(asked_again, own, group[0])] = ("again", group[0].name)
    return jobs


def of_peer(entry: Entry, found: dict[str, dict]) -> dict:
    """Return what was found of a peer; one that is not installed has no answers."""
    about = {"about": entry.about, "library": entry.packages[0], "missing": entry.missing}
    nothing: dict = {"versions": {}, "answers": {}, "failed": ""}
    contracts = {name: own for part in found["contract"].values() for name, own in part.items()}
    ran = contracts.get(entry.name, {"results": [], "failed": ""})
    return about | found["answers"].get(entry.name, nothing) | {"contract": ran}
