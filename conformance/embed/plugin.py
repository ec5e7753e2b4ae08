"""The pytest plugin: `pytest --pyargs conformance --conformance-subject package.module:Class`.

Every pytest session of an environment loads it, so it imports nothing of the suite and changes
nothing, unless the option is given or a test is parametrized with clauses.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SUITE = Path(__file__).parents[1]
OPTION = "--conformance-subject"
OFFERS = pytest.StashKey[list]()
COLLECTED = pytest.StashKey[bool]()
TOLD = pytest.StashKey[dict[str, None]]()  # lines of workers
OFFERED = "attn-rosetta-offered"  # what a worker of pytest-xdist tells
CHECK = f"{__package__}.check"
MARKS = (
    "clause(id): the clause of CONTRACT.md that a test checks",
    "needs(capability): a subject must offer it for this test",
    "untyped: compiles, is refused, or calls what others call",
)
sessions: list[pytest.Config] = []  # that run now, the innermost last


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attn-rosetta", "the contract of masked attention")
    group.addoption(
        OPTION,
        action="append",
        metavar="SUBJECT",
        help="your adapter as package.module:Class, repeatable; with --pyargs conformance",
    )
    group.addoption(
        "--conformance-profile",
        action="append",
        metavar="PROFILE",
        help="only the clauses of this profile, repeatable",
    )
    group.addoption(
        "--conformance-known", metavar="FILE", help="a file of known differences, in TOML"
    )


def declare_marks() -> None:
    """Tell the session the marks of the suite's chapters, before these are imported."""
    for config in sessions:
        for mark in MARKS:
            config.addinivalue_line("markers", mark)


def pytest_unconfigure(config: pytest.Config) -> None:
    if config in sessions:  # another plugin's error may come before
        sessions.remove(config)


@pytest.hookimpl(trylast=True)  # after plugins that watch what is imported
def pytest_configure(config: pytest.Config) -> None:
    sessions.append(config)
    if names := config.option.conformance_subject:
        here = str(config.invocation_params.dir)
        sys.path += [here] * (here not in sys.path)  # where the adapter is, as for python -m
        config.stash[OFFERS] = _offers(config, names)


def _offers(config: pytest.Config, names: list[str]) -> list[Any]:
    from .decorator import offers

    known = config.option.conformance_known
    file = Path(config.invocation_params.dir, known) if known else None
    try:
        return offers(names, config.option.conformance_profile, file)
    except (Exception, SystemExit) as error:
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            told += "; install it, or name its folder in PYTHONPATH"
        raise pytest.UsageError(f"{OPTION} {', '.join(names)}: {told}") from error


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if path != SUITE:
        return None
    if OFFERS not in parent.config.stash:
        if parent.config.option.pyargs:  # else the suite's own settings are there, too
            raise parent.CollectError(f"--pyargs conformance needs {OPTION}: got none")
        return None
    parent.config.stash[COLLECTED] = True
    return Suite.from_parent(parent, path=path, nodeid=SUITE.name)


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    if OFFERS in config.stash and COLLECTED not in config.stash:
        raise pytest.UsageError(f"{OPTION} needs --pyargs conformance: got other tests alone")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that was given a check and did not call it: it would pass whatever is wrong."""
    yield
    check = _check_of(item) if CHECK in sys.modules else None
    if check and not check.called:
        pytest.fail(f"a test must call its check, as in check(): got {check}", pytrace=False)


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    """Say how many cases of the suite are asked, and how many clauses are not offered."""
    return _offered(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    if (lines := _offered(session.items)) and hasattr(session.config, "workeroutput"):
        session.config.workeroutput[OFFERED] = lines


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told = getattr(node, "workeroutput", {}).get(OFFERED, [])
    node.config.stash.setdefault(TOLD, {}).update(dict.fromkeys(told))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash.get(TOLD, {}):
        terminalreporter.write_line(line)


def _offered(items: list[pytest.Item]) -> list[str]:
    if CHECK not in sys.modules:
        return []
    found = [check.offer for check in map(_check_of, items) if check]
    return [f"conformance: {offer}" for offer in {id(offer): offer for offer in found}.values()]


def _check_of(item: pytest.Item) -> Any:
    """Return the check that a test is about, None if there is none."""
    kind = sys.modules[CHECK].Check
    given = [getattr(item, "check", None)]
    given += item.callspec.params.values() if hasattr(item, "callspec") else []
    return next((check for check in given if type(check) is kind), None)


class Suite(pytest.Collector):
    """The suite's folder: its chapters, as they are asked of the subjects."""

    def __init__(self, path: Path, **about: Any):
        super().__init__(path.name, path=path, **about)

    def collect(self) -> Iterator["Chapter"]:
        checks = [check for offer in self.config.stash[OFFERS] for check in offer.checks]
        for chapter in dict.fromkeys(check.case.chapter for check in checks):
            path = self.path.joinpath(*chapter.split(".")).with_suffix(".py")
            own = [check for check in checks if check.case.chapter == chapter]
            nodeid = path.relative_to(self.path.parent).as_posix()
            yield Chapter.from_parent(self, path=path, nodeid=nodeid, checks=own)


class Chapter(pytest.File):
    """A file of the suite: the checks of its cases."""

    def __init__(self, checks: list[Any], **about: Any):
        super().__init__(**about)
        self.checks = checks

    def collect(self) -> Iterator["ClauseItem"]:
        for check in self.checks:
            yield ClauseItem.from_parent(self, name=check.name, check=check)


class ClauseItem(pytest.Item):
    """A case of the suite, put to one subject."""

    def __init__(self, check: Any, **about: Any):
        super().__init__(**about)
        self.check = check

    def runtest(self) -> None:
        self.check()

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name
