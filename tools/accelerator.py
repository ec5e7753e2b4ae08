"""Run the suite, then the benchmarks, on every accelerator found; write results and a page.

    python tools/accelerator.py                      # at most 8 minutes; docs/results/<device>.*
    python tools/accelerator.py --suite -- --profile causal
    python tools/accelerator.py --device cpu         # a rehearsal; .conformance/accelerator/

No network is needed, only the packages that are there. Each part runs in a process of its own and
has a time box; what one part does not use, the later ones get. Results are written as they come:
a run that is cut off leaves what it has. Options after `--` go to the suite. The exit status is 0
only where the whole suite ran, nothing differs, and every value of the benchmarks is right.
"""

import argparse
import json
import os
import platform
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]

from conformance.runs.run import cores  # noqa: E402
from tools import accelerator_lines as lines_of  # noqa: E402
from tools import boxed, devices  # noqa: E402
from tools.accelerator_page import page  # noqa: E402
from tools.progress import Progress  # noqa: E402
from tools.suite_order import TOTAL  # noqa: E402

SECONDS = 480.0
SHARES = {
    ("suite", "torch"): 25,
    ("suite", "jax"): 35,
    ("bench", "torch"): 22,
    ("bench", "jax"): 18,
    ("suite", "numpy"): 10,
    ("bench", "numpy"): 0,  # NumPy has no accelerator, and nothing to compare on one
}
WORK = ROOT / ".conformance" / "accelerator"  # full reports and logs
LEAST = 3.0  # seconds: a part with less is not begun
EVERY = 5.0  # seconds between two writings


@dataclass
class Job:
    """One child process: the suite or the benchmarks, of one backend on one device."""

    what: str
    backend: str
    device: devices.Accelerator
    share: int
    took: float = 0.0
    ended: str = "not reached"
    status: int | None = None

    @property
    def name(self) -> str:
        return f"{self.what} {self.backend} on {self.device.name}"

    def path(self, ending: str) -> Path:
        return WORK / f"{slug(self.device.name)}-{self.what}-{self.backend}.{ending}"

    def report(self) -> Path:
        """Return where its lines are: the suite's stand in a draft until it ends."""
        path = self.path("jsonl")
        drafts = sorted(WORK.glob(f"{path.name}.[0-9]*"))
        return path if path.exists() or not drafts else drafts[0]

    def forget(self) -> None:
        """Remove what an earlier run has left."""
        for path in WORK.glob(f"{self.path('*').name}"):
            path.unlink()


def slug(name: str) -> str:
    """Return a device's name as a file's.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "device"


def boxes(shares: list[int], seconds: float) -> list[float]:
    """Divide seconds by shares.

    >>> boxes([25, 35, 40], 100)
    [25.0, 35.0, 40.0]
    """
    return [seconds * share / sum(shares) for share in shares]


def parts_of(chosen: list[devices.Accelerator], wanted: set[str]) -> list[Job]:
    """Return the parts of a run in their order: every suite before any benchmark."""
    found = []
    for (what, backend), share in SHARES.items():
        for device in chosen:
            if share and what in wanted and backend in device.backends:
                found.append(Job(what, backend, device, share))
    return sorted(found, key=lambda part: part.what == "bench")


class Run:
    """All parts of one run, and what is written of them."""

    def __init__(self, options: argparse.Namespace, found: dict, chosen: list, begun: float):
        self.options, self.found, self.chosen, self.begun = options, found, chosen, begun
        self.parts = parts_of(chosen, options.wanted)
        self.drivers = devices.driver()
        for part in self.parts:
            part.forget()
        self.date = time.strftime("%Y-%m-%d %H:%M %z")
        self.written = 0.0

    def left(self) -> float:
        """Return the seconds that children may still use."""
        ends = 2 * boxed.GRACE  # a child that does not listen, and the last writing
        return self.options.seconds - ends - (time.monotonic() - self.begun)

    def go(self) -> int:
        """Run part after part; return the exit status."""
        plan = boxes([part.share for part in self.parts], self.left())
        with Progress() as progress:
            for part, box in zip(self.parts, plan, strict=True):
                progress.say(f"{part.name}: a box of {box:.0f} s at least")
            whole = False
            try:
                for at, part in enumerate(self.parts):
                    shares = [later.share for later in self.parts[at:]]
                    box = boxes(shares, self.left())[0]
                    if box >= LEAST:
                        self.run(part, box, progress)
                whole = True
            finally:
                self.write(whole)
        return self.status()

    def run(self, part: Job, box: float, progress: Progress) -> None:
        """Run one part in its box."""
        env = devices.environment(self.base_environment(), part.device, self.chosen)
        env[TOTAL] = str(part.path("total"))
        part.ended = "running"
        progress.begin(part.name, box)

        def tick(passed: float) -> None:
            part.took = passed
            progress.at(passed, lines_of.progress(part))
            if time.monotonic() - self.written > EVERY:
                self.write()

        log = part.path("log")
        done = boxed.run(self.command(part, box), box, cwd=ROOT, env=env, log=log, tick=tick)
        part.took, part.status = done.seconds, done.status
        part.ended = "cut off" if done.cut else "whole" if done.status in (0, 1) else "failed"
        progress.say(f"{part.name}: {part.ended} after {done.seconds:.0f} s")
        self.write()

    def base_environment(self) -> dict[str, str]:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".conformance" / "jax-cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return kept | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def command(self, part: Job, box: float) -> list[str]:
        """Return the child's command; it runs in one process unless told otherwise."""
        where = [f"--backend={part.backend}", f"--device={part.device.kind}"]
        where += [f"--report={part.path('jsonl')}"]
        if part.what == "suite":
            order = ["--timeout=60", "-p", "tools.suite_order"]
            return [sys.executable, "-m", "conformance", "run", *where, *order, *self.options.rest]
        tiny = ["--tiny"] * (part.device.kind == "cpu")
        seconds = f"--seconds={max(box - boxed.GRACE, 1):.0f}"
        return [sys.executable, "-m", "benchmarks.accelerator", *where, seconds, *tiny]

    def write(self, whole: bool = False) -> None:
        """Write the results and the page of every device, with what there is by now."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        for device in self.chosen:
            own = self.lines(device, whole)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in own)
            base = self.options.out / slug(device.name)
            for path, content in (
                (base.with_name(f"{base.name}.jsonl"), text),
                (base.with_name(f"{base.name}.md"), page(own)),
            ):
                new = path.with_name(f"{path.name}.new")
                new.write_text(content, "utf-8")
                new.replace(path)  # so that there is always one whole file
        self.written = time.monotonic()

    def lines(self, device: devices.Accelerator, whole: bool) -> list[dict]:
        """Return all lines of one device."""
        made: list[dict] = [self.about(device)]
        for backend, report in self.found.items():
            if backend not in device.backends:
                why = devices.absent(backend, report, device)
                if backend not in (self.options.backend or [backend]):
                    why = "it was not asked for"
                made.append({"type": "absent", "backend": backend, "why": why})
        for part in self.parts:
            if part.device is device:
                made += lines_of.part(part)
        if whole:
            made.append({"type": "end", "seconds": round(time.monotonic() - self.begun, 1)})
        return made

    def about(self, device: devices.Accelerator) -> dict:
        """Say what it was run on, and how."""
        versions = {"python": platform.python_version()}
        for report in self.found.values():
            versions |= report["versions"]
        return {
            "type": "run",
            "device": device.name,
            "kind": device.kind,
            "rehearsal": device.kind == "cpu",
            "memory": device.memory,
            "count": device.count,
            "driver": self.drivers.get(device.name),
            "platform": platform.platform(),
            "cores": cores(),
            "versions": versions,
            "date": self.date,
            "budget": self.options.seconds,
            "wanted": sorted(self.options.wanted),
            "options": self.options.rest,
        }

    def status(self) -> int:
        """Return 0 only where all that was asked for ran and is right."""
        lines = [line for device in self.chosen for line in self.lines(device, True)]
        return int(not lines_of.right(lines))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; what follows `--` is for the suite."""
    given = sys.argv[1:] if arguments is None else arguments
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser("accelerator", description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", action="store_true", help="only the suite")
    parser.add_argument("--bench", action="store_true", help="only the benchmarks")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything: 480")
    parser.add_argument("--device", default="auto", help="auto (each accelerator), cuda, cpu, ...")
    parser.add_argument("--backend", action="append", help="numpy, torch, jax; else all")
    parser.add_argument("--out", type=Path, help="a folder: docs/results, unless it is a rehearsal")
    options = parser.parse_args(given[:at])
    rehearsed = options.device == "cpu"
    options.out = options.out or (WORK / "rehearsal" if rehearsed else ROOT / "docs" / "results")
    if options.seconds < 30:
        parser.error(f"--seconds must be at least 30: got {options.seconds:g}")
    if unknown := set(options.backend or ()) - set(devices.FIND):
        parser.error(f"--backend must be one of {', '.join(devices.FIND)}: got {min(unknown)}")
    options.wanted = {name for name in ("suite", "bench") if getattr(options, name)}
    options.wanted = options.wanted or {"suite", "bench"}
    options.rest = given[at + 1 :]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Find devices, run, write."""
    begun = time.monotonic()
    options = parse(arguments)
    found = devices.discover(str(ROOT), {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ)
    chosen = devices.choose(found, options.device)
    for device in chosen:
        device.backends = [b for b in device.backends if b in (options.backend or device.backends)]
    chosen = [device for device in chosen if device.backends]
    run = Run(options, found, chosen, begun)
    if not run.parts:
        print(f"no device to run on: got --device {options.device}", file=sys.stderr)
        for backend, report in found.items():
            names = ", ".join(one["kind"] for one in report["devices"]) or report.get("why", "")
            print(f"  {backend}: {names}", file=sys.stderr)
        print("`--device cpu` rehearses the same run on the CPU", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children end and files stay
    status = run.go()
    for device in run.chosen:
        print(f"results: {options.out / slug(device.name)}.jsonl and .md")
    return status


if __name__ == "__main__":
    sys.exit(main())
