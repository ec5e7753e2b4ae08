"""How pytest runs the suite: its options, the subjects that they name, the cases to run."""

import gc
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import settings

from conformance import subjects
from conformance.contract import clauses, profiles
from conformance.embed.chapters import require_case
from conformance.embed.plugin import MARKS
from conformance.oracle.tolerance import LEDGER
from conformance.reports import known
from conformance.reports.plugin import REPORTER, Reporter
from conformance.reports.progress import ProgressLine
from conformance.reports.recorded import watch
from conformance.reports.report import case_of
from conformance.reports.suggest import must_be_one_of
from conformance.runs.examples import USUAL
from conformance.runs.limit import Limit
from conformance.runs.mappings import few_mappings
from conformance.runs.options import HOW, INTERNAL, WHAT
from conformance.subjects.protocol import NotOffered
from conformance.subjects.stash import SUBJECTS

__all__ = ["few_mappings"]  # a fixture of every file

HERE = Path(__file__).parent
ENTRIES = pytest.StashKey[list]()  # known differences
LIMIT = pytest.StashKey[Limit]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    for name, how in (WHAT | HOW).items():
        group.addoption(name, **how)


@pytest.hookimpl(trylast=True)  # after plugins that watch the backends being imported
def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", mark)
    worker = getattr(config, "workerinput", {})
    vars(config.option).update(INTERNAL | vars(config.option) | worker.get("options", {}))
    config.stash[ENTRIES] = entries(config)
    config.stash[LIMIT] = Limit(config.option.case_timeout, config.option.notes)
    gc.set_threshold(100_000)  # tracing makes many small objects that live: do not walk them often
    settings.register_profile("steady", derandomize=True, **USUAL)
    settings.register_profile("smoke", derandomize=True, max_examples=25, **USUAL)
    settings.register_profile("fuzz", max_examples=2000, **USUAL)
    options = config.option
    settings.load_profile("fuzz" if options.fuzz else "smoke" if options.smoke else "steady")
    _check("--profile", config.option.profile, profiles())
    _check("--clause", config.option.clause, list(clauses()))
    if options.mutant and (options.backend or options.subject):
        raise pytest.UsageError("--mutant stands alone: got --backend or --subject too")
    config.stash[LIMIT].begin()
    if options.mutant:
        config.stash[SUBJECTS] = mutated(options.mutant, options.device)
    else:
        config.stash[SUBJECTS] = select(options.backend, options.device, options.subject)
    config.stash[LIMIT].end()
    about = [f"{s.name} on {s.device}" for s in config.stash[SUBJECTS]]
    if len(set(about)) < len(about):
        raise pytest.UsageError(f"subjects differ in name or device: got {', '.join(about)}")
    config.pluginmanager.register(Reporter(config, config.stash[SUBJECTS]), REPORTER)
    quiet = options.verbose < 0 and not options.collectonly and sys.stderr.isatty()
    if options.notes and quiet and not hasattr(config, "workerinput"):
        config.pluginmanager.register(ProgressLine(config.stash[SUBJECTS]))


def entries(config: pytest.Config) -> list[known.Known]:
    """Read the known differences, once a process."""
    if not config.option.known:
        return []
    try:
        return known.read(getattr(config, "workerinput", {}).get("known", config.option.known))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--known: {error}") from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Tell a worker where the file is: an adapter may have changed the folder."""
    if node.config.option.known:
        path = Path(node.config.invocation_params.dir, node.config.option.known)
        node.workerinput["known"] = str(path)


def _check(option: str, asked: list[str] | None, names: list[str]) -> None:
    for name in asked or []:
        if name not in names:
            raise pytest.UsageError(must_be_one_of(option, names, name))


def select(backends: list[str] | None, device: str, named: list[str] | None = None) -> list:
    """Load the subjects that are asked for: every installed backend where none is named."""
    if not named and not backends:
        named = [os.environ[name]] if os.environ.get(name := subjects.ENVIRONMENT) else []
    adapters = [subject for name in named or [] for subject in plugged(name, device)]
    return adapters if named and not backends else of_backends(backends, device) + adapters


def mutated(names: list[str], device: str) -> list:
    """Load wrong implementations; they are imported only here, where somebody asks for one."""
    mutants = import_module("conformance.mutants")
    try:
        return [mutants.load(name, "cpu" if device == "auto" else device) for name in names]
    except (ImportError, ValueError) as error:
        raise pytest.UsageError(f"--mutant: {error}") from error


def plugged(name: str, device: str) -> list:
    """Load somebody's adapter; whatever it raises becomes one line."""
    try:
        return subjects.plug(name, device)
    except ValueError as error:
        raise pytest.UsageError(f"--subject {name}: {error}") from error
    except (Exception, SystemExit) as error:
        rule = f"--subject {name} must be importable and say what it offers"
        raise pytest.UsageError(f"{rule}: got {type(error).__name__}: {error}") from error


def of_backends(backends: list[str] | None, device: str) -> list:
    """Load the backends that are asked for, on each of their devices that is asked for."""
    _check("--backend", backends, list(subjects.BACKENDS))
    lacking = {name: subjects.missing(name) for name in backends or subjects.BACKENDS}
    usable = [name for name, packages in lacking.items() if not packages]
    if not usable or (backends and len(usable) < len(set(backends))):
        missing = "; ".join(f"{name} lacks {', '.join(p)}" for name, p in lacking.items() if p)
        rule = "a backend must be installed to be tested, or --subject name an adapter"
        raise pytest.UsageError(f"{rule}: got {missing}")
    try:
        devices = {name: subjects.devices(name) for name in usable}
    except ImportError as error:
        rule = "a backend must be importable to be tested"
        raise pytest.UsageError(f"{rule}: got {error}") from error
    device = subjects.ALIASES.get(device, device)
    pairs = [
        (name, there)
        for name in usable
        for there in devices[name]
        if device in ("auto", there, subjects.ALIASES.get(there))
    ]
    if not pairs:
        have = "; ".join(f"{name} has {', '.join(there)}" for name, there in devices.items())
        rule = "--device must be one that a backend reports"
        raise pytest.UsageError(f"{rule}: got {device}, {have}")
    return [subjects.load(*pair) for pair in pairs]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("clause")
        if mark is None:
            raise pytest.UsageError(f"a test names its clause: got {metafunc.function.__name__}")
        tested = metafunc.config.stash[SUBJECTS]
        ids = [f"{subject.name}-{subject.device}-{mark.args[0]}" for subject in tested]
        metafunc.parametrize("subject", tested, ids=ids)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and isinstance(item, pytest.Function):
            mark = item.get_closest_marker("clause")
            if not mark or mark.args[0] not in clauses() or "subject" not in item.fixturenames:
                rule = "a test of the suite takes `subject` and checks a clause of CONTRACT.md"
                raise pytest.UsageError(f"{rule}: got {item.nodeid}")
    if config.option.known:
        idle = known.mark(items, config.stash[ENTRIES])
        if idle and not hasattr(config, "workerinput"):  # workers cannot say it; the report can
            rule = "--known: a known difference must match a case of the suite"
            raise pytest.UsageError(f"{rule}: got {'; '.join(map(str, idle))}")
    should = {clause.id for clause in clauses().values() if clause.level == "SHOULD"}
    for item in items:
        mark = item.get_closest_marker("clause")
        if mark and mark.args[0] in should:
            item.add_marker(pytest.mark.xfail(reason="a SHOULD clause", strict=False))
    kept = [item for item in items if wanted(item, config.option)]
    kept = sample(kept) if config.option.smoke else kept
    if len(kept) < len(items):
        chosen = set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = kept


def wanted(item, options) -> bool:
    """Whether a test is of the profiles, clauses and cases that are asked for."""
    if not (options.clause or options.profile or options.case or options.smoke):
        return True
    mark = item.get_closest_marker("clause")
    clause = clauses().get(mark.args[0]) if mark else None
    if clause is None:  # another test, in the same run
        return False
    if options.case and case_of(item.name, item.callspec.params["subject"]) not in options.case:
        return False
    asked = clause.id in (options.clause or [clause.id])
    return asked and clause.profile in (options.profile or [clause.profile])


def sample(items: list) -> list:
    """Keep the first case of each test of the suite, for each subject."""
    first: dict = {}
    for item in items:
        first.setdefault((item.function, item.callspec.params["subject"]), item)
    return list(first.values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    limit = item.config.stash[LIMIT]
    limit.begin()
    try:
        return (yield)
    finally:
        limit.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Open the ledger for the test's clause; skip a test of what the subject does not offer."""
    mark = item.get_closest_marker("clause")
    LEDGER.open(mark.args[0] if mark else "")
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "subject" in parameters:
        watch(parameters["subject"])
    try:
        if "subject" in parameters:
            needs = [need for mark in item.iter_markers("needs") for need in mark.args]
            require_case(parameters["subject"], needs, parameters.get("dtype"))
        return (yield)
    except NotOffered as error:
        pytest.skip(str(error))
