"""The suite's commands: python -m conformance COMMAND --help."""

import argparse
import json
import os
import sys

from .contract import clauses
from .reports.report import USAGE, read
from .runs.draft import REPORT
from .runs.options import HOW, INTERNAL, WHAT
from .runs.run import run

FORMATS = ("text", "markdown", "json", "line", "badge", "junit")
PACKAGES = ("numpy", "pytest")
PYTEST = "Other options go to pytest."
READ = f"a report in JSON Lines, by default {REPORT}"
DAY = 86_400
TIMEOUT = 300.0  # seconds; a case takes less than one, except where JAX compiles


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is pytest's, and 0 only for a pass."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console may lack a letter; the verdict must not fail
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _command(sys.argv[1:] if arguments is None else arguments)
        finally:  # after --help, too, which ends by SystemExit
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        how = f"python -m pip install {package}"
        print(f"this command needs {package}: got no such package ({how})", file=sys.stderr)
        return USAGE
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def _command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser(
        "run", help="check implementations against the contract", epilog=PYTEST
    )
    smoke_parser = commands.add_parser(
        "smoke", help="a quick verdict, by the first case of each test", epilog=PYTEST
    )
    for command, declared in ((run_parser, WHAT | HOW), (smoke_parser, WHAT)):
        for name, how in declared.items():
            command.add_argument(name, **how)
        limit = f"seconds for a case, 0 for no limit; by default {TIMEOUT:g}"
        command.add_argument("--timeout", dest="case_timeout", type=seconds, help=limit)
        command.set_defaults(**INTERNAL | {"report": REPORT, "case_timeout": TIMEOUT})
    smoke_parser.set_defaults(smoke=True, mutant=None, fuzz=False, known=None)
    summary_parser = commands.add_parser("summary", help="show a report")
    summary_parser.add_argument("path", nargs="?", default=REPORT, help=READ)
    summary_parser.add_argument("--wide", action="store_true", help="every row and column")
    summary_parser.add_argument("--format", choices=FORMATS, default="text")
    diff_parser = commands.add_parser("diff", help="what changed between two reports")
    diff_parser.add_argument("old", help="a report")
    diff_parser.add_argument("new", help="a later one")
    known_parser = commands.add_parser("known", help="draft a file of known differences")
    known_parser.add_argument("path", nargs="?", default=REPORT, help=READ)
    commands.add_parser("list", help="list the clauses")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("run", "smoke"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.arguments = arguments
    return COMMANDS[options.command](options, rest)


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= DAY:
        raise argparse.ArgumentTypeError(f"must be from 0 to {DAY} seconds: got {text}")
    return value


def show(options: argparse.Namespace, rest: list[str]) -> int:
    """Print a report that was written before."""
    from .reports import ci, summary, verdict
    from .reports.terminal import Line, columns, show

    report = read(options.path)
    texts = {
        "markdown": summary.markdown,
        "line": ci.one_line,
        "junit": ci.junit,
        "json": lambda report: _json(summary.as_data(report)),
        "badge": lambda report: _json(ci.badge(report)),
    }
    if options.format in texts:
        print(texts[options.format](report))
    else:
        text, _ = verdict.verdict(report, report[-1]["exit"])
        show([*summary.summary(report, columns(), options.wide, options.path), Line(text, "bold")])
    return 0


def _json(data: dict) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def compare(options: argparse.Namespace, rest: list[str]) -> int:
    """Print what changed; the exit status is 1 if something got worse."""
    from .reports.diff import diff

    text, worse = diff(read(options.old), read(options.new))
    print(text)
    return int(worse)


def draft(options: argparse.Namespace, rest: list[str]) -> int:
    from .reports import known

    print(known.draft(read(options.path)))
    return 0


def show_clauses(options: argparse.Namespace, rest: list[str]) -> int:
    for clause in clauses().values():
        print(f"{clause.profile:10} {clause.id:9} {clause.level:6} {clause.sentence}")
    return 0


COMMANDS = {
    "run": run,
    "smoke": run,
    "summary": show,
    "diff": compare,
    "known": draft,
    "list": show_clauses,
}


if __name__ == "__main__":
    sys.exit(main())
