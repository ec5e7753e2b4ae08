"""Deliberately wrong implementations; `tools/mutants/` proves that the suite catches each of them.

Each mutant is a right subject with one mistake in front of one method. It says in a sentence what
is wrong, and which clauses of the contract must catch it.

>>> MUTANTS["inverted"].clauses
('ATT-1', 'ATT-2', 'CAUSE-1', 'DOC-B8')
"""

from importlib import import_module

from .. import subjects
from ..reports.suggest import must_be_one_of
from ..subjects.protocol import Subject
from .mutant import MUTANTS, Mutant, broken

# The chapters, in the order of reading; importing one enters its mistakes in MUTANTS.
CHAPTERS = {
    "masks": "What is allowed",
    "questions": "What builders and masks answer",
    "attention": "The formula and its paths",
    "empty": "Empty rows and hidden positions",
    "half": "16 bits and dtypes",
    "gradients": "Gradients",
    "partial": "Parts of a call",
    "multihead": "Multi-head attention",
    "heads": "Heads before they attend",
    "layers": "Layers and models",
    "cache": "Decoding with a cache",
    "weights": "Files and layouts of weights",
    "transforms": "What frameworks make of a call",
    "errors": "Refusals",
}
for _chapter in CHAPTERS:
    import_module(f"{__name__}.{_chapter}")


def named(name: str) -> Mutant:
    """Return a mutant by its name, whose words may be joined by hyphens or underscores."""
    found = MUTANTS.get(name.replace("_", "-"))
    if found is None:
        raise ValueError(must_be_one_of("a mutant", MUTANTS, name))
    return found


def load(name: str, device: str = "cpu") -> Subject:
    """Return a right subject with a mutant's mistake in it, named as the mutant is.

    >>> load("first_sample_mask").name
    'first-sample-mask'
    """
    mutant = named(name)
    subject = broken(subjects.load(mutant.base, device), mutant.method, mutant.mistake)
    subject.name = mutant.name
    subject.asked_as = f"--mutant {mutant.name}"
    return subject


__all__ = ["CHAPTERS", "MUTANTS", "Mutant", "broken", "load", "named"]
