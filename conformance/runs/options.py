"""The options of a run, declared once for the command line and for pytest."""

from typing import Any

WHAT: dict[str, dict[str, Any]] = {
    "--backend": {
        "action": "append",
        "help": "numpy, torch or jax, repeatable; by default all that are installed",
    },
    "--subject": {
        "action": "append",
        "help": "your adapter as package.module:Class, pipe:program, an entry point or a peer, "
        "repeatable; by default the one that ATTN_ROSETTA_SUBJECT names",
    },
    "--device": {"default": "auto", "help": "cpu, cuda, ...; auto, the default, is all of them"},
    "--profile": {"action": "append", "help": "only the clauses of this profile, repeatable"},
    "--clause": {"action": "append", "help": "only this clause, such as EMPTY-2, repeatable"},
    "--case": {"action": "append", "help": "only this case, as a report names it, repeatable"},
    "--report": {"help": "the file for the results, in JSON Lines"},
}
HOW: dict[str, dict[str, Any]] = {
    "--mutant": {"action": "append", "help": "a wrong implementation, to see how it is caught"},
    "--fuzz": {"action": "store_true", "help": "let Hypothesis explore new random examples"},
    "--known": {"help": "a file of known differences, in TOML"},
}
# What the command line tells its pytest beside them; these are the values of a pytest without it.
INTERNAL: dict[str, Any] = {"smoke": False, "notes": None, "resume": False, "case_timeout": 0.0}
