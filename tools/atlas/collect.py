"""Measure every peer: its answers and its contract run, each in a process, two at a time.

Frameworks take each other's settings and a backend is chosen once a process, so every peer answers
in a process of its own; the contract run puts peers together that share packages and environment.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import conformance
from conformance.contract import clauses
from conformance.reports.report import read, results
from conformance.subjects.peers import PEERS

from . import again
from .conversions import conversions
from .matrix import WRONG
from .snippets import Snippet, snippets

AT_ONCE = 2
# What an adapter of somebody's own can offer anything of.
PROFILES = (
    "attention", "empty", "hygiene", "causal", "gradients", "half", "multihead", "cache",
)  # fmt: skip
WITHOUT_MASKED_ROWS = "tools.atlas.without_masked_rows:"
AGREEMENT = Path(conformance.__file__).with_name("test_agreement.py")
KINDS = ("contract", "answers", "snippets", "conversions", "again")
SLIM = ("clause", "case", "outcome", "took", "message", "dtype")
SECONDS = {"answers": 180, "contract": 600, "snippet": 120}
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONIOENCODING": "utf-8",
}


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


def run(words: list[str], environment: dict[str, str], seconds: int) -> tuple[str, str]:
    """Run Python with these words; return what it printed, and why it did not end well, or ""."""
    try:
        done = subprocess.run(
            [sys.executable, *words], env=os.environ | SETTINGS | environment, timeout=seconds,
            capture_output=True, text=True, encoding="utf-8", check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"no answer within {seconds} seconds"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return done.stdout, f"the process ended with {done.returncode}: {last[0]}"
    return done.stdout, ""


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
    `without_masked_rows`.
    """
    out = folder / f"{entries[0].name}.report.jsonl"
    chosen = [f"--profile={profile}" for profile in PROFILES]
    found, failed = suite(entries, "", chosen, out)
    if failed:
        return {entry.name: {"results": [], "failed": failed} for entry in entries}
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
    return {name: {"results": own, "failed": failed} for name, own in rows.items()}


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
    there = [entry for entry in entries if not entry.missing]
    for entry in entries:
        if entry.missing:
            print(f"{entry.name}: not installed ({', '.join(entry.missing)})", file=sys.stderr)
    groups: dict[tuple, list[Entry]] = {}
    for entry in there:
        groups.setdefault(entry.group, []).append(entry)
    jobs: dict[Callable, tuple[str, str]] = {}
    for group in groups.values():  # the long ones first
        jobs[partial(contract, group, folder)] = ("contract", group[0].name)
    for entry in there:
        jobs[partial(answers, entry, folder)] = ("answers", entry.name)
    runnable = [snippet for snippet in snippets() if not snippet.missing]
    for snippet in runnable:
        jobs[partial(printed, snippet)] = ("snippets", snippet.question)
    for group in groups.values():
        jobs[partial(converted, group)] = ("conversions", group[0].name)
    found = _in_pairs(jobs)
    day = time.strftime("%Y-%m-%d")
    cells = again.sample(found["answers"], day)
    jobs = {}
    for group in groups.values():
        names = {entry.name for entry in group}
        if own := [cell for cell in cells if cell[0] in names]:
            jobs[partial(asked_again, own, group[0])] = ("again", group[0].name)
    found |= {"again": _in_pairs(jobs)["again"]}
    contracts: dict = {}
    for part in found["contract"].values():
        contracts |= part
    return {
        "measured": day,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peers": {
            entry.name: {
                "about": entry.about,
                "library": entry.packages[0],
                "missing": entry.missing,
            }
            | found["answers"].get(entry.name, {"versions": {}, "answers": {}, "failed": ""})
            | {"contract": contracts.get(entry.name, {"results": [], "failed": ""})}
            for entry in entries
        },
        "snippets": found["snippets"],
        "conversions": merged(found["conversions"]),
        "again": merged(found["again"]),
    }


def _in_pairs(jobs: dict[Callable, tuple[str, str]]) -> dict[str, dict]:
    """Run the jobs two at a time under a progress bar; a failure is said at once, in one line."""
    found: dict[str, dict] = {kind: {} for kind in KINDS}
    columns = [TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(jobs))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = {pool.submit(job): about for job, about in jobs.items()}
            for done in as_completed(waiting):
                kind, name = waiting[done]
                found[kind][name] = done.result()
                progress.update(task, advance=1, description=f"{kind}: {name}")
                for failed in _failures(name, done.result()):
                    progress.console.print(failed, highlight=False)
    return found


def _failures(name: str, result: dict) -> list[str]:
    if "failed" in result:
        return [f"{name}: {result['failed']}"] if result["failed"] else []
    return [line for peer, part in result.items() for line in _failures(peer, part)]
