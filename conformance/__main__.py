"""The suite's commands: python -m conformance COMMAND --help."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

from . import known
from .contract import clauses
from .report import has_footer, read
from .reporter import REPORTER
from .subjects import ENVIRONMENT
from .summary import FORMATS, diff, summary

HERE = Path(__file__).parent
REPORT = ".conformance/report.jsonl"
# Commands that are a program each, with options of their own.
OF_THEIR_OWN = {
    "vectors": (".vectors.freeze", "derive the frozen vectors again"),
    "mutants": (".mutants.gate", "see that every wrong implementation is caught"),
    "atlas": (".atlas.__main__", "measure other libraries"),
}
# Options that leave cases out, as pytest names them.
FILTERS = (
    "clause", "profile", "case", "smoke",
    "keyword", "markexpr", "deselect", "ignore", "ignore_glob",
)  # fmt: skip
UNTESTED = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command that is asked for; the exit status is pytest's, and 0 only for a pass."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in OF_THEIR_OWN:
        name, _ = OF_THEIR_OWN[arguments[0]]
        return import_module(name, __package__).main(arguments[1:])
    parser = argparse.ArgumentParser("conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser(
        "run", help="hold subjects against the contract", epilog="Other options go to pytest."
    )
    smoke_parser = commands.add_parser("smoke", help="a verdict in ten seconds")
    for command in (run_parser, smoke_parser):
        _add_subjects(command)
        command.add_argument("--report", default=REPORT, help=f"JSON Lines, by default {REPORT}")
    run_parser.add_argument("--mutant", action="append", help="a wrong implementation, to learn by")
    run_parser.add_argument("--fuzz", action="store_true", help="explore new random examples")
    run_parser.add_argument("--known", help="a file of known differences, TOML")
    summary_parser = commands.add_parser("summary", aliases=["report"], help="read a report")
    summary_parser.add_argument("path", help="a report in JSON Lines")
    summary_parser.add_argument("--format", choices=FORMATS, default="text")
    diff_parser = commands.add_parser("diff", help="what began or ceased to conform, or got worse")
    diff_parser.add_argument("old", help="a report in JSON Lines")
    diff_parser.add_argument("new", help="a later one")
    known_parser = commands.add_parser("known", help="draft a file of known differences")
    known_parser.add_argument("path", help="a report in JSON Lines")
    for name, (_, words) in OF_THEIR_OWN.items():
        commands.add_parser(name, help=words)
    commands.add_parser("list", help="list the clauses")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("run", "smoke"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return COMMANDS[options.command](options, rest)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def _add_subjects(parser: argparse.ArgumentParser) -> None:
    own = f"package.module:Class, an entry point or a peer; else what {ENVIRONMENT} names"
    parser.add_argument("--backend", action="append", help="numpy, torch, jax; else all of them")
    parser.add_argument("--subject", action="append", help=f"{own}; repeatable")
    parser.add_argument("--device", default="auto", help="auto (all), or cpu, cuda, ...")
    parser.add_argument("--profile", action="append", help="only this profile; repeatable")
    parser.add_argument("--clause", action="append", help="only this clause; repeatable")
    parser.add_argument("--case", action="append", help="only this case, as a report names it")


class Asked:
    """A pytest plugin that hears what pytest was told, by whatever way it was told."""

    whole = False  # whether every case was asked for
    reported = False  # whether a report was written

    def pytest_configure(self, config: pytest.Config) -> None:
        self.whole = not any(config.getoption(name, None) for name in FILTERS)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reporter = session.config.pluginmanager.get_plugin(REPORTER)
        self.reported = reporter is not None and reporter.file is not None


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the suite, then print its table; nothing collected is an error."""
    heard = Asked()
    status = int(pytest.main(_words(options, rest), plugins=[heard]))
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        print("no case matches what was asked for: nothing was tested", file=sys.stderr)
    if status in UNTESTED or (status == pytest.ExitCode.OK and not heard.reported):
        return status  # refused, or only collected: an older report is no verdict of this run
    if not heard.reported or not has_footer(options.report):
        got = f"{options.report}, without a footer" if heard.reported else "no result"
        print(f"a run that was cut off has no verdict: got {got}", file=sys.stderr)
        return status or int(pytest.ExitCode.INTERRUPTED)
    return _verdict(options, heard.whole) or status


def _words(options: argparse.Namespace, rest: list[str]) -> list[str]:
    """Return what pytest is told."""
    given = [str(HERE), f"-c{HERE / 'pytest.ini'}", f"--rootdir={HERE}", "-q"]
    for name in ("backend", "subject", "mutant", "profile", "clause", "case"):
        given += [f"--{name}={value}" for value in getattr(options, name) or []]
    given += [f"--device={options.device}", f"--report={options.report}"]
    given += ["--fuzz"] * options.fuzz + ["--smoke"] * (options.command == "smoke")
    given += [f"--known={options.known}"] if options.known else []
    asked = options.clause or options.profile or options.case
    if not (asked or options.command == "smoke" or rest):
        # the whole suite takes all cores; a file's cases share what the oracle found
        given += ["-p", "xdist", f"-n{os.cpu_count() or 1}", "--dist=loadfile"]
    return [*given, *rest]


def _verdict(options: argparse.Namespace, whole: bool) -> int:
    """Print a whole report; return an exit status where the tests' own does not say enough."""
    lines = read(options.report)
    print(f"{summary(lines)}\nreport: {options.report}")
    if set(lines[-1]["counts"]) <= {"not offered"}:
        print("nothing was tested: all that was asked for is not offered", file=sys.stderr)
        return int(pytest.ExitCode.NO_TESTS_COLLECTED)
    entries = known.read(options.known) if options.known and whole else []
    if idle := known.idle(entries, lines):
        text = "; ".join(map(str, idle))
        rule = "a known difference matches a case of the suite that is offered"
        print(f"{rule}: got {text} in {options.known}", file=sys.stderr)
        return int(pytest.ExitCode.TESTS_FAILED)
    return 0


def smoke(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the first case of each test, in one process."""
    options.fuzz, options.known, options.mutant = False, None, None
    return run(options, rest)


def show(options: argparse.Namespace, rest: list[str]) -> int:
    print(summary(read(options.path), options.format))
    return 0


def compare(options: argparse.Namespace, rest: list[str]) -> int:
    """Print what changed; the exit status is 1 where something got worse."""
    text, worse = diff(read(options.old), read(options.new))
    print(text)
    return int(worse)


def draft(options: argparse.Namespace, rest: list[str]) -> int:
    print(known.draft(read(options.path)))
    return 0


def show_clauses(options: argparse.Namespace, rest: list[str]) -> int:
    for clause in clauses().values():
        print(f"{clause.profile:10} {clause.id:9} {clause.level:6} {clause.sentence}")
    return 0


COMMANDS = {
    "run": run,
    "smoke": smoke,
    "summary": show,
    "report": show,
    "diff": compare,
    "known": draft,
    "list": show_clauses,
}


if __name__ == "__main__":
    sys.exit(main())
