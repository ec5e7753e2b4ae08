"""The gate's judgement: results in, kills and complaints out. It runs nothing."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from conformance.contract import clauses
from conformance.mutants.mutant import Mutant
from conformance.reports.report import read
from conformance.reports.report import results as results_of


class Result(NamedTuple):
    """How one case of a clause went on one subject."""

    subject: str
    clause: str
    case: str
    outcome: str
    message: str

    @property
    def test(self) -> tuple[str, str]:
        """Return the clause and the test function, of which this is one case."""
        return self.clause, self.case.split("[")[0]


def case_of(test: str, subject: str) -> str:
    """Return a test's id without its subject: the same for a mutant and for its base.

    >>> case_of("test_scale[numpy-cpu-ATT-1-plain]", "numpy")
    'test_scale[cpu-ATT-1-plain]'
    """
    return test.replace(f"[{subject}-", "[", 1)


def results(path: str | Path) -> list[Result]:
    """Read the results of a report."""
    found = []
    for line in results_of(read(path)):
        subject, outcome, message = line["subject"], line["outcome"], line["message"]
        case = case_of(line["test"], subject)
        found.append(Result(subject, line["clause"], case, outcome, message))
    return found


@dataclass
class GateVerdict:
    """Which clauses caught which mutant, by which message; and what is wrong with that."""

    kills: dict[str, dict[str, str]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    tests: set[tuple[str, str]] = field(default_factory=set)  # clause and test, of right subjects
    idle: set[tuple[str, str]] = field(default_factory=set)  # of them, those that caught nothing
    cases: int = 0

    def catches(self) -> Counter:
        """Return how many mutants each clause catches."""
        return Counter(clause for caught in self.kills.values() for clause in caught)


def decide(mutants: list[Mutant], found: list[Result], *, all_clauses: bool) -> GateVerdict:
    """Check the results of right subjects and mutants against the clauses that the mutants name.

    `all_clauses`: every MUST clause must catch a mutant, too.
    """
    by_subject: dict[str, dict[str, Result]] = defaultdict(dict)
    for result in found:
        by_subject[result.subject][result.case] = result
    verdict = GateVerdict(cases=len(found))
    for base in dict.fromkeys(mutant.base for mutant in mutants):
        right = by_subject[base].values()
        verdict.complaints += right_complaints(base, right)
        verdict.tests |= {r.test for r in right if r.outcome == "conforms"}
    verdict.idle = set(verdict.tests)
    for mutant in mutants:
        own, beside = by_subject[mutant.name], by_subject[mutant.base]
        proved = [r for r in own.values() if beside.get(r.case, r).outcome == "conforms"]
        kills = [r for r in proved if is_kill(mutant, r.outcome)]
        verdict.idle -= {r.test for r in kills}
        caught = {r.clause: r.message for r in reversed(kills)}
        verdict.kills[mutant.name] = {id: caught[id] for id in clauses() if id in caught}
        verdict.complaints += mutant_complaints(mutant, caught, proved)
    if all_clauses:
        idle = clauses().keys() - verdict.catches().keys()
        verdict.complaints += [
            f"{c.id} catches no mutant: {c.sentence}\n  a clause that catches nothing proves "
            "nothing: add a mutant that breaks it, or a test that sees it broken"
            for c in clauses().values()
            if c.id in idle and c.level == "MUST"
        ]
    return verdict


def is_kill(mutant: Mutant, outcome: str) -> bool:
    return outcome == "differs" or (mutant.raises and outcome == "error")


def right_complaints(base: str, right) -> list[str]:
    """Complain of a right subject that does not conform."""
    must = {clause.id for clause in clauses().values() if clause.level == "MUST"}
    wrong = [r for r in right if r.outcome in ("differs", "error") and r.clause in must]
    if not right:
        return [f"{base}, a right subject, ran no case: nothing that differs from it is proved"]
    return [
        f"{base}, the right subject, does not conform to {r.clause} in {r.case}: {r.message}\n"
        "  until it does, a mutant that is caught proves nothing\n"
        f"  run it: python -m conformance run --backend {base} --clause {r.clause}"
        for r in wrong
    ]


def mutant_complaints(mutant: Mutant, caught: dict, proved: list[Result]) -> list[str]:
    """Complain of a mutant that survives, or that a clause lets pass though it must catch it."""
    missed = [clause for clause in mutant.clauses if clause not in caught]
    others = [clause for clause in caught if clause not in mutant.clauses]
    if not missed:
        return []
    if len(missed) < len(mutant.clauses):
        head = f"{mutant.name} is not caught by {', '.join(missed)}"
    elif others:
        head = f"{mutant.name} is caught only by clauses that it does not name"
    else:
        head = f"{mutant.name} survives"
    raised = {r.clause: r.message for r in proved if r.outcome == "error" and not mutant.raises}
    lines = [
        f"{head}: {mutant.sentence}",
        f"  must be caught by: {', '.join(mutant.clauses)}",
        f"  is caught by: {', '.join(caught) or 'nothing'}",
    ]
    if raised:
        clause, message = next(iter(raised.items()))
        first = message.splitlines()[0] if message else ""
        lines.append(f"  raises in {', '.join(raised)}, which is no catch; in {clause}: {first}")
    if not proved:
        lines.append(f"  no case uses {mutant.method}, which it breaks")
    lines.append(f"  run it alone: python -m tools.mutants {mutant.name}")
    return ["\n".join(lines)]
