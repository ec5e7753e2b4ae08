"""python -m conformance run | report | list: the suite from the command line."""

import argparse
import sys
from pathlib import Path

import pytest

from .contract import clauses
from .report import read, summary

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    """Run the command that is asked for; the exit status is pytest's, and 0 only for a pass."""
    parser = argparse.ArgumentParser("conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser(
        "run", help="hold backends against the contract", epilog="Other options go to pytest."
    )
    run_parser.add_argument("--backend", action="append", help="numpy, torch or jax; repeatable")
    run_parser.add_argument("--device", default="auto", help="auto (all), or cpu, cuda, ...")
    run_parser.add_argument("--profile", action="append", help="only this profile; repeatable")
    run_parser.add_argument("--clause", action="append", help="only this clause; repeatable")
    run_parser.add_argument("--fuzz", action="store_true", help="explore new random examples")
    run_parser.add_argument("--report", default=".conformance/report.jsonl", help="JSON Lines")
    report_parser = commands.add_parser("report", help="summarise a report")
    report_parser.add_argument("path", help="a report in JSON Lines")
    commands.add_parser("list", help="list the clauses")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    match options.command:
        case "run":
            return run(options, rest)
        case "report":
            try:
                print(summary(read(options.path)))
            except (OSError, ValueError) as error:
                print(error, file=sys.stderr)
                return 2
        case "list":
            for clause in clauses().values():
                print(f"{clause.profile:10} {clause.id:9} {clause.level:6} {clause.sentence}")
    return 0


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the suite, then print its table; nothing collected is an error."""
    given = [str(HERE), f"-c{HERE / 'pytest.ini'}", f"--rootdir={HERE}", "-q"]
    for name in ("backend", "profile", "clause"):
        given += [f"--{name}={value}" for value in getattr(options, name) or []]
    given += [f"--device={options.device}", f"--report={options.report}"]
    given += ["--fuzz"] * options.fuzz
    status = pytest.main([*given, *rest])
    if "--collect-only" in rest:
        return int(status)
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        lines = read(options.report)
        print(f"{summary(lines)}\nreport: {options.report}")
        if set(lines[-1]["counts"]) <= {"not offered"}:
            print("nothing was tested: all that was asked for is not offered", file=sys.stderr)
            return int(pytest.ExitCode.NO_TESTS_COLLECTED)
    elif status == pytest.ExitCode.NO_TESTS_COLLECTED:
        print("no case matches what was asked for: nothing was tested", file=sys.stderr)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
