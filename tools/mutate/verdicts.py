"""The verdicts of earlier runs, so that only what has changed is judged again.

A catch stays true while the mutant's file and the test that catches it read the same. What nobody
catches is judged again when the suite changes, or, for what the tests say, when they do. A catch
that is no longer sure still says which case to ask first.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from .child import SUITE
from .mutant import ROOT, SourceMutant
from .reach import digest, pin

Verdict = dict[str, Any]
WHERE = ("conformance", "tests")  # who is asked, in this order


class Verdicts:
    """Files of JSON lines, a verdict each: the last one of a mutant counts.

    What is judged is added to the file in `folder`; `record` is one that is kept with the source.
    """

    def __init__(self, folder: Path, record: Path | None = None):
        self.path, self.record = folder / "verdicts.jsonl", record
        folder.mkdir(parents=True, exist_ok=True)
        self.hashes = {"conformance": digest(SUITE), "tests": digest(ROOT / "tests")}
        self.known: dict[tuple[str, str], Verdict] = {}
        self.catches: dict[str, Verdict] = {}  # the suite's last of each mutant, by its name
        for path in (record, self.path):
            for line in path.read_text("utf-8").splitlines() if path and path.exists() else ():
                self._know(json.loads(line))

    def _know(self, verdict: Verdict) -> None:
        self.known[verdict["mutant"], verdict["where"]] = verdict
        if verdict["where"] == "conformance" and "::" in verdict.get("case", ""):
            self.catches[verdict.get("id", "")] = verdict

    def keep(self, mutant: SourceMutant, where: str, answer: Verdict, write: bool = True) -> None:
        """Keep a verdict."""
        verdict = answer | {"mutant": hashed(mutant), "id": mutant.id}
        verdict |= {"file": mutant.file, "where": where}
        verdict["asked"] = self.asked(verdict)
        self._know(verdict)
        if not write:
            return
        with self.path.open("a", encoding="utf-8") as file:
            print(json.dumps(verdict), file=file)

    def asked(self, verdict: Verdict) -> str:
        """Return a hash of what a verdict depends on: the test that caught, else all of them."""
        file, named, _ = verdict.get("case", "").partition("::")
        return pin(verdict["where"], file) if named else self.hashes[verdict["where"]]

    def earlier(self, mutant: SourceMutant, where: str) -> Verdict:
        """Return what is known and still true of a mutant; nothing is an empty dict."""
        verdict = self.known.get((hashed(mutant), where), {})
        return verdict if verdict and verdict["asked"] == self.asked(verdict) else {}

    def again(self, mutant: SourceMutant) -> dict[str, Any]:
        """Return the task of the one case that caught a mutant last."""
        catch = self.catches[mutant.id]
        file = catch["case"].partition("::")[0].removeprefix("conformance/")
        return {
            **{"backend": mutant.backend, "where": "conformance", "files": [file]},
            **{"file": mutant.file, "text": mutant.text},
            **{"order": {catch["case"]: 0}, "limit": 60 + 10 * catch["seconds"]},
        }

    def write(self, mutants: list[SourceMutant]) -> None:
        """Write to the record what is true of these mutants, or else their last catch."""
        lines = []
        for mutant in mutants:
            true = [self.earlier(mutant, where) for where in WHERE]
            known = [v for v in true if v] or [v for v in [self.catches.get(mutant.id)] if v]
            lines += [json.dumps(verdict | {"message": ""}) for verdict in known]
        if self.record:
            self.record.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def catchers(self, mutant: SourceMutant) -> set[str]:
        """Return the tests that have caught other mutants of its file."""
        own = (v for v in list(self.known.values()) if v["file"] == mutant.file)
        return {verdict["case"].split("[")[0] for verdict in own if "case" in verdict}

    def get(self, mutant: SourceMutant, suite: bool = False) -> Verdict:
        """Return the verdict on a mutant: the suite's if it catches it, else the tests'."""
        first = self.earlier(mutant, "conformance")
        if "case" in first or suite or not first:
            return first
        return self.earlier(mutant, "tests")


def hashed(mutant: SourceMutant) -> str:
    return hashlib.sha256(f"{mutant.file}\n{mutant.text}".encode()).hexdigest()[:16]
