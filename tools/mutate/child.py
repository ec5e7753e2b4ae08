"""What a forked process does for one mutant: pytest on the chosen cases, until one catches it."""

import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

from .mutant import ROOT

SUITE = ROOT / "conformance"
# They compare texts or start processes of their own, so that they do not see a mutant.
LEFT_OUT = ("mirror", "copies", "mutants", "mutate", "words", "names", "rooms", "portable")
SLOW = 60.0  # seconds that any case may take; ten times what it took, where that is more
MOST = 600  # characters of a message


def words(backend: str, where: str, overlay: Path, files: list[str]) -> list[str]:
    """Return pytest's arguments: for the suite, or for the project's own tests and doctests."""
    common = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    common += ["--import-mode=append"]  # else pytest puts the original before the overlay
    if where == "conformance":
        chosen = [str(SUITE / file) for file in files] or [str(SUITE)]
        own = [f"-c{SUITE / 'pytest.ini'}", f"--rootdir={SUITE}"]
        return [*chosen, *own, f"--backend={backend}", "--device=cpu", *common]
    every = [str(ROOT / "tests"), str(overlay / f"attn_{backend}")]
    chosen = [str(overlay / f if f.startswith("attn_") else ROOT / f) for f in files] or every
    out = [f"--ignore={ROOT / 'tests' / f'test_{name}.py'}" for name in LEFT_OUT]
    project = [f"-c{ROOT / 'pyproject.toml'}", f"--rootdir={ROOT}", "--doctest-modules"]
    return [*chosen, *out, *project, *common]


def key(item: pytest.Item, overlay: Path) -> str:
    """Return a case's name, the same wherever the overlay lies."""
    path = item.path
    own = path.relative_to(overlay if path.is_relative_to(overlay) else ROOT)
    return f"{own.as_posix()}::{item.nodeid.partition('::')[2]}"


class ChosenCases:
    """A pytest plugin: runs the chosen cases in their order, and says which failed first."""

    def __init__(self, overlay: Path, tell: Callable[[dict], None], task: dict[str, Any]):
        self.overlay, self.tell = overlay, tell
        self.order: dict[str, int] | None = task.get("order")  # None: every case
        # A case that nobody has watched yet runs too, where it is said which are known.
        self.known = set(task["known"]) if "known" in task else None
        self.seconds: dict[str, float] = task.get("seconds", {})
        self.told = False

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        no_shrinking = [Phase.explicit, Phase.reuse, Phase.generate]
        settings.register_profile("mutate", settings.default, phases=no_shrinking)
        settings.load_profile("mutate")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = self.order
        if order is None:
            return
        keys = {id(item): key(item, self.overlay) for item in items}
        last = len(order)
        known = keys.values() if self.known is None else self.known
        kept = [i for i in items if keys[id(i)] in order or keys[id(i)] not in known]
        items[:] = sorted(kept, key=lambda i: order.get(keys[id(i)], last))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        name = key(item, self.overlay)
        self.tell({"now": name})
        faulthandler.dump_traceback_later(max(SLOW, 10 * self.seconds.get(name, 0)), exit=True)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):
        report = yield
        if report.failed and not self.told:
            self.told = True
            self.tell({"case": key(item, self.overlay), "message": report.longreprtext[-MOST:]})
        return report


def work(task: dict[str, Any], overlay: Path, tell: Callable[[dict], None]) -> None:
    """Run the cases of a task with the overlay's package first on the path; tell how it went."""
    prepare(task)
    sys.path.insert(0, str(overlay))
    plugin = ChosenCases(overlay, tell, task)
    call = words(task["backend"], task["where"], overlay, task.get("files", []))
    status = pytest.main([*call, *["-x"] * (not task.get("all_failures"))], plugins=[plugin])
    if status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        tell({"survived": True})
    elif not plugin.told:  # the package cannot be imported, say
        sys.stdout.flush()  # who is told reads at once what was printed
        tell({"case": "before the first case", "message": ""})


def prepare(task: dict[str, Any]) -> None:
    """Set what a forked process needs: programs of mutants are not kept among JAX's."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["PYTEST_ADDOPTS"] = ""
    if "jax" in sys.modules and not task.get("record"):
        sys.modules["jax"].config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
