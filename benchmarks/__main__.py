"""python -m benchmarks [--only WORD ...]: every row, as a Markdown page and a line of history."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError:
    sys.exit("the benchmarks need rich: python -m pip install rich")

from . import compiling, everyday, history, memory, page, sinks, steps, windows
from .measure import matmul_peak, paired
from .rows import Row, rows

HISTORY = "docs/benchmarks.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for; a word that matches no row is an error."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="rows whose name has this word")
    parser.add_argument("--seconds", type=float, default=8.0, help="a row's time, about")
    parser.add_argument(
        "--history", help=f"the file that gets a line; a whole run's is {HISTORY} by default"
    )
    parser.add_argument("--page", help="where the Markdown page goes, such as docs/benchmarks.md")
    parser.add_argument(
        "--enforce", action="store_true", help="exit with 1 where a row misses its floor or limit"
    )
    options = parser.parse_args(arguments)

    def asked(name: str) -> bool:
        return all(word in name for word in options.only)

    wanted = [row for row in every_row() if asked(row.name)]
    cases = [case for case in memory.CASES if asked(memory.name(case))]
    compiled = [case for case in compiling.CASES if asked(compiling.name(case))]
    if not wanted and not cases and not compiled:
        parser.error(f"--only must match a row: got {' '.join(options.only)}")
    report = measure(wanted, cases, compiled, options.seconds)
    if kept := options.history or (not options.only and HISTORY):
        history.append(Path(kept), report)
    print(page.markdown(report))
    if options.page:
        Path(options.page).parent.mkdir(parents=True, exist_ok=True)
        Path(options.page).write_text(page.markdown(report) + "\n", "utf-8")
    print("", *page.misses(report), page.summary(report), sep="\n")
    return int(options.enforce and bool(page.misses(report)))


def every_row() -> list[Row]:
    """Return the rows of speed, in the order of the page."""
    return [*rows(), *sinks.rows(), *everyday.rows(), *steps.rows(), *windows.rows()]


def measure(wanted: list[Row], cases: list[tuple], compiled: list[tuple], budget: float) -> dict:
    """Run everything with a progress bar, and return it as plain data, to five digits."""
    report: dict = history.origin() | {"speed": [], "overhead": [], "memory": [], "compile": []}
    mib: dict[tuple, float | None] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("peak", total=len(wanted) + len(cases) + len(compiled) + 1)
        peak = matmul_peak()
        report["gflops"] = round(peak / 1e9)
        progress.advance(task)
        for row in wanted:
            progress.update(task, description=row.name)
            part, line = timed(row, budget, peak)
            report[part].append(line)
            progress.advance(task)
        for case in cases:
            about = {"work": memory.name(case), "at_most": memory.AT_MOST.get(case[1])}
            progress.update(task, description=about["work"])
            mib[case] = memory.extra(*case)
            report["memory"].append(about | {"mib": mib[case]})
            progress.advance(task)
        for case in compiled:
            about = {"work": compiling.name(case), "at_most": compiling.AT_MOST}
            progress.update(task, description=about["work"])
            report["compile"].append(about | {"seconds": compiling.seconds(*case)})
            progress.advance(task)
    return _rounded(report | {"growth": memory.growth(mib)})


def timed(row: Row, budget: float, peak: float) -> tuple[str, dict]:
    """Measure one row; return the part of the report that it belongs to, and its line."""
    with row.during():
        times = paired(*row.make(), budget)
    about = {"work": row.name, "against": row.against}
    if row.at_most is None:
        share = row.operations / times.ours / peak
        return "speed", about | {"floor": row.floor} | asdict(times) | {"of_peak": share}
    more = {"micros": 1e6 * (times.ours - times.theirs), "at_most": row.at_most}
    return "overhead", about | {"ours": times.ours, "theirs": times.theirs} | more


def _rounded(value):
    """Return the same data with every float at five digits."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
