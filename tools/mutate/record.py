"""Which lines of a backend each case runs: pytest under coverage.py, with a context for each case.

JAX traces a function once: so a backend's programs are forgotten before each test, though not
before each of a test's cases.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .child import key, prepare, words


class WatchedCases:
    """A pytest plugin: switches coverage's context, and notes which cases pass and how fast."""

    def __init__(self, overlay: Path, measure: Any):
        self.overlay, self.measure = overlay, measure
        self.seconds: dict[str, float] = {}
        self.bad: set[str] = set()
        self.function: Any = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        function = getattr(item, "function", None)
        if function is not self.function:
            forget()
        self.function = function
        self.measure.switch_context(key(item, self.overlay))
        try:
            return (yield)
        finally:
            self.measure.switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):
        report = yield
        name = key(item, self.overlay)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + report.duration, 3)
        if report.failed or report.skipped:
            self.bad.add(name)
        return report


def work(task: dict[str, Any], overlay: Path, tell: Callable[[dict], None]) -> None:
    """Run the files of a task and tell, case by case, its seconds and lines by file."""
    import coverage

    prepare(task)
    sys.path.insert(0, str(overlay))
    backends = [f"attn_{task['backend']}"] if task["where"] == "conformance" else list_of(overlay)
    folders = [f"{overlay / name}/*" for name in backends]
    measure = coverage.Coverage(data_file=None, include=folders, config_file=False)
    measure.set_option("run:core", "ctrace")
    plugin = WatchedCases(overlay, measure)
    measure.start()
    status = pytest.main(
        words(task["backend"], task["where"], overlay, task["files"]), plugins=[plugin]
    )
    measure.stop()
    data = measure.get_data()
    lines: dict[str, dict[str, list[int]]] = {}
    for path in data.measured_files():
        file = Path(path).relative_to(overlay).as_posix()
        for number, names in data.contexts_by_lineno(path).items():
            for name in names:
                lines.setdefault(name, {}).setdefault(file, []).append(number)
    cases = {name: [s, lines.get(name, {})] for name, s in plugin.seconds.items()}
    tell({"status": int(status), "bad": sorted(plugin.bad), "cases": cases})


def forget() -> None:
    """Let JAX trace the backend's own compiled functions again."""
    for name in [name for name in sys.modules if name.startswith("attn_jax.")]:
        for thing in vars(sys.modules[name]).values():
            if hasattr(thing, "clear_cache"):
                thing.clear_cache()


def list_of(overlay: Path) -> list[str]:
    return [path.name for path in overlay.glob("attn_*")]
