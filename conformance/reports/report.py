"""A report: JSON Lines of one header, cases and their results, and one footer.

`report.schema.json` is the schema of its lines. A report that lacks any of them is refused.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..contract import clauses

# pytest's own statuses, by name: pytest may be missing where a report is read
OK, FAILED, INTERRUPTED, INTERNAL, USAGE, NOTHING = range(6)
OUTCOMES = ("conforms", "differs", "error", "known difference", "not offered")
ENDS = ["header", "footer"]
IN_PLACE = re.compile(r"your function changed its input .+? in place")
WRONG_NUMBER = re.compile(r"([^:]*) at \([\d, ]*\): expected (.*?), got (.*)")
WORST_FIRST = ("error", "differs", "known difference", "conforms", "not offered")
OUTDATED = "a known difference has begun to conform: take its entry ("
FOOTER_BYTES = 4096  # more than a footer has
CRASHED = {"outcome": "error", "took": None, "used": None, "what": None, "seconds": 0.0}


def line(**fields) -> str:
    """Return one line of a report; what JSON has no number for becomes a text.

    >>> line(got=float("nan"))
    '{"got": "NaN"}'
    """
    plain = {name: _plain(value) for name, value in fields.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _plain(value):
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    return value


class CutOffError(ValueError):
    """A report lacks its header or its footer: its run was cut off, or it is no report."""


@cache
def _schema() -> Any:
    """Return a validator of lines; without jsonschema None, and no line is checked."""
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        return None
    text = Path(__file__).with_name("report.schema.json").read_text("utf-8")
    return Draft202012Validator(json.loads(text))


def entered(result: dict, cases: set[str]) -> Iterator[str]:
    """Yield the lines by which a result enters a report: before it its case, if that is new."""
    result = dict(result)
    clause, dtype = clauses()[result["clause"]], result.pop("dtype")
    if result["case"] not in cases:
        cases.add(result["case"])
        about = {"clause": clause.id, "level": clause.level, "profile": clause.profile}
        yield line(type="case", case=result["case"], **about, dtype=dtype)
    yield line(type="result", **result)


def enter(path: Path, about: dict, message: str) -> None:
    """Enter a case that ended its process in a report without a footer, as an error."""
    cases = {line["case"] for line in begun(path) if line["type"] == "case"}
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for text in entered(about | CRASHED | {"message": message}, cases):
            print(text, file=file)


def trim(path: Path) -> None:
    """Take off a last line that is not whole: its process ended while it was written."""
    text = path.read_text("utf-8", "replace")
    path.write_text(text[: text.rfind("\n") + 1], "utf-8")


def begun(path: Path) -> list[dict]:
    """Return the lines of a report that is still being written, as they stand."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def read(path: str | Path) -> list[dict]:
    """Read a report.

    Raises ValueError where lines are missing, doubled or not of the schema, and its subclass
    `CutOffError` where the report has no header or no footer; OSError where none can be read.
    """
    try:
        lines = begun(Path(path))
        kinds = [line["type"] for line in lines]
    except FileNotFoundError:
        rule = "a report must be there, python -m conformance run writes one"
        raise FileNotFoundError(f"{rule}: got no {path}") from None
    except (ValueError, KeyError, TypeError, RecursionError):  # no UTF-8, JSON, object, type
        kinds = []
    if kinds[:1] + kinds[-1:] != ENDS or [kind for kind in kinds if kind in ENDS] != ENDS:
        rule = "a report begins with a header and ends with a footer, one of each, in JSON Lines"
        raise CutOffError(f"{rule}: got {path}")
    for number, line in enumerate(lines, 1):
        if _schema() and not _schema().is_valid(line):
            raise ValueError(f"a report has lines of report.schema.json: got {path}, line {number}")
        if (id := line.get("clause")) and id not in clauses():
            rule = "a report has clauses of CONTRACT.md"
            raise ValueError(f"{rule}: got {id} in {path}, line {number}")
    _check(lines, path)
    return lines


def has_footer(path: str | Path) -> bool:
    """Whether a report ends with a footer; where it does not, its run was cut off."""
    with Path(path).open("rb") as file:
        file.seek(max(0, Path(path).stat().st_size - FOOTER_BYTES))
        return file.read().rpartition(b"\n{")[2].startswith(b'"type": "footer"')


def _check(lines: list[dict], path: str | Path) -> None:
    """Check a report's results against the cases that it names and the counts of its footer."""
    named = [line["case"] for line in lines if line["type"] == "case"]
    tests = Counter((r["subject"], r["device"], r["test"]) for r in results(lines))
    if twice := [test for test, count in tests.items() if count > 1]:
        raise ValueError(f"a report has one result a test: got {twice[0]} twice in {path}")
    if sorted(named) != sorted({result["case"] for result in results(lines)}):
        raise ValueError(f"a report names each case of its results once: got {path}")
    counts, outcomes = lines[-1]["counts"], Counter(r["outcome"] for r in results(lines))
    if Counter(counts) != outcomes:
        rule = "a footer counts the results of its report"
        raise ValueError(f"{rule}: got {counts} for {dict(outcomes)} in {path}")


def case_of(test: str, subject) -> str:
    """Return the name of a test's case, which all subjects share."""
    return test.replace(subject_part(subject), "[", 1)


def clause_of(test: str, subjects: Iterable) -> tuple[Any, str] | None:
    """Return the subject and the clause that a test's name holds, None if it holds none."""
    for subject in subjects:
        clause = re.search(rf"{re.escape(subject_part(subject))}(\w+-\w+)", test)
        if clause and clause[1] in clauses():
            return subject, clause[1]
    return None


def subject_part(subject) -> str:
    r"""Return the part of a test's name that names its subject; pytest escapes all but ASCII.

    >>> from types import SimpleNamespace
    >>> print(subject_part(SimpleNamespace(name="注意", device="cpu")))
    [\u6ce8\u610f-cpu-
    """
    return f"[{subject.name}-{subject.device}-".encode("unicode_escape").decode("ascii")


def results(lines: list[dict]) -> list[dict]:
    """Return the results of a report, without its cases."""
    return [line for line in lines if line["type"] == "result"]


def outdated(entry: object, file: str) -> str:
    """Return the message of a known difference that conforms now."""
    return f"{OUTDATED}{entry}) out of {file}"


def conforms_now(result: dict) -> bool:
    """Whether a result is a known difference that conforms now, and so fails its run."""
    return result["outcome"] == "error" and result["message"].startswith(OUTDATED)


def entry_file(result: dict) -> str:
    """Return the file of known differences that such a result names.

    >>> entry_file({"message": outdated("EMPTY-1, case '*'", "known.toml")})
    'known.toml'
    """
    return result["message"].rpartition(") out of ")[2]


def by_clause(results: list[dict]) -> dict[str, str]:
    """Return one outcome for each clause: the worst of its tests, "not offered" only if all are.

    >>> by_clause([{"clause": "ATT-1", "outcome": "conforms"},
    ...            {"clause": "ATT-1", "outcome": "not offered"}])
    {'ATT-1': 'conforms'}
    """
    outcomes = defaultdict(set)
    for result in results:
        outcomes[result["clause"]].add(result["outcome"])
    return {id: next(w for w in WORST_FIRST if w in group) for id, group in outcomes.items()}


def changed_input(result: dict) -> str:
    """Return what is said of a call that wrote into its inputs, "" if it did not."""
    found = IN_PLACE.search(result["message"].partition("\n")[0])
    return found[0] if found else ""


def in_short(result: dict, where: str = "") -> str:
    """Return in a few words what is wrong with an answer that has no name.

    >>> in_short({"clause": "ATT-1", "outcome": "differs",
    ...           "message": "ATT-1: output at (0, 1): expected 1, got nan, error inf"})
    'output: NaN or inf'
    """
    text = next(iter(result["message"].splitlines()), "").removeprefix(f"{result['clause']}: ")
    if result["outcome"] == "error":
        return text.partition(": ")[0]
    if changed := changed_input(result):
        return changed
    text = re.sub(r"^vector \S+: ", "", text)
    number = WRONG_NUMBER.match(text)
    if number is None:
        return shorten(text.partition(", got")[0].partition(": ")[0], 60, placeholder=" ...")
    what, wanted, got = number.groups()
    if not re.fullmatch(r"(exactly )?(-?\d\S*|True|False)", wanted):
        return f"{what}{where}: not {wanted}"
    how = "NaN or inf" if re.match("nan|-?inf", got) else "beyond the tolerance"
    return f"{what}{where}: {how}"
