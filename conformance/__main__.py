"""The suite's commands: python -m conformance COMMAND --help."""

import argparse
import os
import sys

from .contract import clauses
from .reports.report import read
from .runs.draft import REPORT
from .runs.run import USAGE, run

FORMATS = ("text", "markdown", "json")
PACKAGES = ("numpy", "pytest")
DAY = 86_400
TIMEOUT = 300.0  # seconds; a case takes less than one, but for JAX's, which compile


def main(arguments: list[str] | None = None) -> int:
    """Run the command that is asked for; the exit status is pytest's, and 0 only for a pass."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console may lack a letter: the verdict stands
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
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
        "run", help="check subjects against the contract", epilog="Other options go to pytest."
    )
    smoke_parser = commands.add_parser("smoke", help="a verdict in ten seconds")
    for command in (run_parser, smoke_parser):
        _add_subjects(command)
        command.add_argument("--report", default=REPORT, help=f"JSON Lines, by default {REPORT}")
        limit = f"seconds for a case, 0 for no limit; by default {TIMEOUT:g}"
        command.add_argument("--timeout", type=seconds, default=TIMEOUT, help=limit)
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


def _add_subjects(parser: argparse.ArgumentParser) -> None:
    own = "package.module:Class, an entry point or a peer; else what ATTN_ROSETTA_SUBJECT names"
    parser.add_argument("--backend", action="append", help="numpy, torch, jax; else all of them")
    parser.add_argument("--subject", action="append", help=f"{own}; repeatable")
    parser.add_argument("--device", default="auto", help="auto (all), or cpu, cuda, ...")
    parser.add_argument("--profile", action="append", help="only this profile; repeatable")
    parser.add_argument("--clause", action="append", help="only this clause; repeatable")
    parser.add_argument("--case", action="append", help="only this case, as a report names it")


def smoke(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the first case of each test, in one process."""
    options.fuzz, options.known, options.mutant = False, None, None
    return run(options, rest)


def show(options: argparse.Namespace, rest: list[str]) -> int:
    from .reports.summary import summary

    print(summary(read(options.path), options.format))
    return 0


def compare(options: argparse.Namespace, rest: list[str]) -> int:
    """Print what changed; the exit status is 1 where something got worse."""
    from .reports.summary import diff

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
    "smoke": smoke,
    "summary": show,
    "report": show,
    "diff": compare,
    "known": draft,
    "list": show_clauses,
}


if __name__ == "__main__":
    sys.exit(main())
