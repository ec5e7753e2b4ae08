"""Known differences: a file of the clauses that an implementation violates on purpose, and why.

    [[known]]
    clause = "EMPTY-1"
    case = "test_zero_gives_exact_zeros[*]"  # left out: every case of the clause
    subject = "mine"  # left out: every subject
    device = "cuda"  # left out: every device
    reason = "a fully masked row returns the mean of all values"
    link = "https://example.org/issues/1"

Every case that an entry matches must differ; with `outcome = "error"` it may raise. Like a strict
xfail, an entry fails the run if its case conforms, or if it matches no case; only its device may be
absent today. If several entries match a case, the first counts. A SHOULD clause fails no run and
needs no entry. A file may be empty.
"""

import json
import tomllib
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import shorten

import pytest

from ..contract import clauses
from .report import case_of, results

NEEDED = ("clause", "reason", "link")
# What a known difference may raise, by its outcome.
MISSED = pytest.fail.Exception  # pytest.raises saw no exception
RAISES = {"differs": (AssertionError, MISSED), "error": (Exception, MISSED)}


@dataclass(frozen=True)
class Known:
    """One known difference."""

    clause: str
    reason: str
    link: str
    case: str = "*"
    subject: str = "*"
    device: str = "*"
    outcome: str = "differs"

    def matches(self, clause: str, case: str, subject: str, device: str) -> bool:
        """Whether the entry is about a case."""
        named = _fits(case, self.case) and _fits(subject, self.subject)
        return clause == self.clause and named and self.is_of(device)

    @property
    def expected(self) -> str:
        """Return why its cases are expected to fail."""
        return f"a known difference: {self.reason} ({self.link})"

    def is_of(self, device: str) -> bool:
        return _fits(device, self.device)

    def __str__(self) -> str:
        about = f"case {self.case!r}, subject {self.subject!r}, device {self.device!r}"
        return f"{self.clause}, {about}"


def _fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern, in which brackets are plain letters."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


KNOWN = pytest.StashKey[Known]()


def read(path: str | Path) -> list[Known]:
    """Read a file of known differences. Raises ValueError if it holds anything else."""
    try:
        file = tomllib.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"known differences are written in TOML: got {path}, {error}") from error
    strange = {name: value for name, value in file.items() if name != "known" or not _tables(value)}
    if strange:
        rule = "a file of known differences holds tables [[known]] and nothing else"
        raise ValueError(f"{rule}: got {strange} in {path}")
    return [_checked(entry, path) for entry in file.get("known", [])]


def _tables(value) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _checked(entry: dict, path: str | Path) -> Known:
    texts = all(isinstance(value, str) for value in entry.values())
    named = entry.keys() <= {field.name for field in fields(Known)}
    if texts and named and all(entry.get(name, "").strip() for name in NEEDED):
        known = Known(**entry)
        if known.clause in clauses() and known.outcome in RAISES:
            if clauses()[known.clause].level != "MUST":
                raise ValueError(f"a SHOULD clause needs no entry: got {known.clause} in {path}")
            return known
    if texts and (lacking := [name for name in NEEDED if not entry.get(name, "").strip()]):
        rule = f"a known difference has {', '.join(NEEDED)}"
        raise ValueError(f"{rule}: got no {', '.join(lacking)} in {entry}, {path}")
    rule = "a known difference has a clause of the contract, a reason and a link"
    more = "and may have a case, a subject, a device, and outcome = 'differs' or 'error'"
    raise ValueError(f"{rule}, {more}, all of them texts: got {entry} in {path}")


def mark(items: list[pytest.Item], entries: list[Known]) -> list[Known]:
    """Expect the known differences of the tests; return the entries that match none."""
    cases = []
    for item in items:
        clause = item.get_closest_marker("clause")
        if clause is None or not hasattr(item, "callspec"):
            continue
        subject = item.callspec.params["subject"]
        case = (clause.args[0], case_of(item.name, subject), subject.name, subject.device)
        cases.append(case)
        entry = next((entry for entry in entries if entry.matches(*case)), None)
        if entry:
            item.stash[KNOWN] = entry
            wrong = RAISES[entry.outcome]
            item.add_marker(pytest.mark.xfail(reason=entry.expected, strict=True, raises=wrong))
    return unmatched(entries, cases)


def idle(entries: list[Known], lines: list[dict]) -> list[Known]:
    """Return the entries that match no case of a report, or only cases that were not offered."""
    tried = [r for r in results(lines) if r["outcome"] != "not offered"]
    return unmatched(entries, [(r["clause"], r["case"], r["subject"], r["device"]) for r in tried])


def unmatched(entries: list[Known], cases: list[tuple[str, str, str, str]]) -> list[Known]:
    """Return the entries that match no case; a device that is absent today matches any."""
    there = {device for *_, device in cases}

    def is_used(entry: Known) -> bool:
        entry = entry if any(map(entry.is_of, there)) else replace(entry, device="*")
        return any(entry.matches(*case) for case in cases)

    return [entry for entry in entries if not is_used(entry)]


def draft(lines: list[dict]) -> str:
    """Return a file of known differences for all that differs in a report, without the reasons.

    One entry for a clause of which every case differs, else an entry a case. A device is named
    where the report has its subject on several.
    """
    groups, devices = defaultdict(list), defaultdict(set)
    for result in results(lines):
        subject, device, clause = result["subject"], result["device"], result["clause"]
        devices[subject].add(device)
        if result["outcome"] != "not offered" and clauses()[clause].level == "MUST":
            groups[subject, device, clause].append(result)
    entries = []
    for (subject, device, clause), group in groups.items():
        about = {"clause": clause, "subject": subject}
        about |= {"device": device} if len(devices[subject]) > 1 else {}
        wrong = [r for r in group if r["outcome"] in ("differs", "error")]
        alike = len({r["outcome"] for r in group}) == 1
        if wrong and alike:
            entries.append(_entry(about | {"case": "*"}, wrong[0]))
        else:
            entries += [_entry(about | {"case": r["case"]}, r) for r in wrong]
    return "\n".join(entries)


def _entry(about: dict[str, str], result: dict) -> str:
    first = (result["took"] or result["message"]).partition("\n")[0]
    told = shorten("".join(filter(str.isprintable, first)), 80, placeholder=" ...")
    about = about | ({"outcome": "error"} if result["outcome"] == "error" else {})
    written = "".join(f"{name} = {_toml(value)}\n" for name, value in about.items())
    return f'[[known]]\n{written}reason = ""  # {told}\nlink = ""\n'


def _toml(text: str) -> str:
    """Write a text as TOML does: as JSON, but for DEL, which JSON lets stand."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
