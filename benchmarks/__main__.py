"""python -m benchmarks [--only WORD ...]: every row, as a table, as JSON and as a Markdown page."""

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError:
    sys.exit("the benchmarks need rich: python -m pip install rich")

from conformance.runs.run import cores

from . import compiling, memory, steps
from .measure import matmul_peak, paired
from .rows import Row, rows

HEAD = ("work", "against", "ours ms", "theirs ms", "ratio", "middle half", "floor", "of peak")


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for; a word that matches no row is an error."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="rows whose name has this word")
    parser.add_argument("--seconds", type=float, default=8.0, help="a row's time, about")
    parser.add_argument(
        "--json", default=".conformance/benchmarks.json", help="where the JSON goes"
    )
    parser.add_argument("--page", help="where the Markdown page goes, such as docs/benchmarks.md")
    options = parser.parse_args(arguments)
    wanted = [
        row for row in (*rows(), *steps.rows()) if all(word in row.name for word in options.only)
    ]
    cases = [c for c in memory.CASES if all(word in _memory_name(c) for word in options.only)]
    compiled = [c for c in compiling.CASES if all(w in compiling.name(c) for w in options.only)]
    if not wanted and not cases and not compiled:
        parser.error(f"--only must match a row: got {' '.join(options.only)}")
    report = measure(wanted, cases, compiled, options.seconds)
    page = markdown(report)
    print(page)
    for path, text in ((options.json, json.dumps(report, indent=1)), (options.page, page)):
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text + "\n", "utf-8")
    return 0


def measure(wanted: list[Row], cases: list[tuple], compiled: list[tuple], budget: float) -> dict:
    """Run everything with a progress bar, and return it as plain data."""
    found: dict = {"machine": machine(), "speed": [], "memory": [], "compile": []}
    mib: dict[tuple, float | None] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("peak", total=len(wanted) + len(cases) + len(compiled) + 1)
        peak = matmul_peak()
        found["machine"]["matmul_gflops"] = round(peak / 1e9)
        progress.advance(task)
        for row in wanted:
            progress.update(task, description=row.name)
            got = paired(*row.make(), budget)
            share = row.operations / got.ours / peak
            line = vars(got) | {"work": row.name, "against": row.against, "floor": row.floor}
            found["speed"].append(line | {"of_peak": share})
            progress.advance(task)
        for case in cases:
            progress.update(task, description=_memory_name(case))
            mib[case] = memory.extra(*case)
            line = {"work": _memory_name(case), "mib": mib[case]}
            found["memory"].append(line | {"at_most": memory.AT_MOST.get(case[1])})
            progress.advance(task)
        for case in compiled:
            line = {"work": compiling.name(case), "floor": compiling.FLOOR}
            progress.update(task, description=line["work"])
            found["compile"].append(line | {"seconds": compiling.seconds(*case)})
            progress.advance(task)
    return found | {"growth": memory.growth(mib)}


def _memory_name(case: tuple) -> str:
    backend, kind, length, backward = case
    return f"{backend} {kind} T={length}{' + backward' if backward else ''}"


def machine() -> dict:
    """Say what it was measured on."""
    packages = ("numpy", "torch", "jax", "flax")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "versions": {name: version(name) for name in packages},
    }


def markdown(report: dict) -> str:
    """Return the report as a page."""
    on = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks --page docs/benchmarks.md`: float32, the two calls of a row",
        "interleaved in one process, medians. A ratio above 1 means that ours is faster, and the",
        "middle half is that of the rounds' own ratios. Operations count visible cells only, and",
        "the peak is a NumPy matrix product's.",
        "",
        f"{on['date']}, {on['cores']} cores, {on['platform']}, Python {on['python']}, {versions};",
        f"matrix-product peak {on['matmul_gflops']} GFLOP/s.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
    ]
    for row in report["speed"]:
        cells = (
            row["work"],
            row["against"],
            f"{1e3 * row['ours']:.1f}",
            f"{1e3 * row['theirs']:.1f}",
            f"**{row['ratio']:.2f}**",
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['floor']:.2f}",
            f"{row['of_peak']:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_memory_page(report), *_compile_page(report)])


def _memory_page(report: dict) -> list[str]:
    """Return the tables on memory: how much it is, and how it grows with T."""
    lines = [
        "",
        "| memory beyond inputs and outputs, one head of 64 | MiB | at most |",
        "|---|---|---|",
    ]
    for row in report["memory"]:
        mib = "not measured here" if row["mib"] is None else f"{row['mib']:.1f}"
        lines.append(f"| {row['work']} | {mib} | {row['at_most'] or ''} |")
    lines += [
        "",
        "Four times the length takes 4 times the memory where it grows linearly, 16 times where",
        f"quadratically; up to {memory.LINEAR} counts as linear. About 1 means that buffers of a",
        "fixed size are all there is. Torch's figures are resident memory, to a few hundred KiB;",
        "one may be negative, where a call gives back what an earlier one had left.",
        "",
        "| four times the length | memory grows | |",
        "|---|---|---|",
    ]
    for row in report["growth"]:
        ratio = row["ratio"]
        verdict = "-" if ratio is None else "linear" if ratio <= memory.LINEAR else "NOT linear"
        shown = "from nothing" if ratio is None else f"{ratio:.1f} x"
        lines.append(f"| {row['work']} | {shown} | {verdict} |")
    return lines


def _compile_page(report: dict) -> list[str]:
    """Return the table on how long the first call takes."""
    lines = ["", "| tracing and compiling | seconds | at most |", "|---|---|---|"]
    for row in report["compile"]:
        lines.append(f"| {row['work']} | **{row['seconds']:.1f}** | {row['floor']:.0f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
