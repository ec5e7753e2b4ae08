"""Upstream threads on what the questions ask, read from sources.toml."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STATES = ("open", "closed", "merged")


@dataclass(frozen=True)
class Thread:
    """One thread: the title is its author's; peers are patterns of names, none for everyone's.

    `note` says where the title or the state would mislead beside what is measured.
    """

    url: str
    title: str
    state: str
    questions: tuple[str, ...]
    peers: tuple[str, ...]
    note: str = ""

    @property
    def label(self) -> str:
        """The thread as its project names it: owner/name#number."""
        _, _, _, owner, name, _, number = self.url.split("/")
        return f"{owner}/{name}#{number}"


@cache
def threads() -> tuple[Thread, ...]:
    """Return every thread. Raises ValueError where an entry is not of the form."""
    text = Path(__file__).with_name("sources.toml").read_text("utf-8")
    found = []
    for entry in tomllib.loads(text)["thread"]:
        lists = {name: tuple(entry[name]) for name in ("questions", "peers")}
        thread = Thread(**entry | lists)
        if thread.state not in STATES or not thread.questions or thread.url.count("/") != 6:
            rule = "a thread has the address of an issue or a pull request, a state and questions"
            raise ValueError(f"{rule}: got {entry}")
        found.append(thread)
    return tuple(found)


def about(question: str) -> list[Thread]:
    """Return the threads on a question."""
    return [thread for thread in threads() if question in thread.questions]
