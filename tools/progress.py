"""How far a run is: a bar where rich is installed, else a line now and then."""

import time

try:
    from rich.console import Console
    from rich.progress import Progress as Bars
except ImportError:
    Bars = None

EVERY = 15.0  # seconds between two plain lines


class Progress:
    """Says which part is running, for how long, and how many results it has."""

    def __init__(self) -> None:
        self.bars = Bars(console=Console(stderr=True)) if Bars else None
        self.task, self.name, self.box, self.last = None, "", 0.0, 0.0

    def __enter__(self) -> "Progress":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if self.bars:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.bars:
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def begin(self, name: str, box: float) -> None:
        """Begin a part."""
        self.name, self.box, self.last = name, box, time.monotonic()
        if self.bars:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task = self.bars.add_task(name, total=box)

    def at(self, passed: float, done: str) -> None:
        """Show how far the part is."""
        if self.bars:
            self.bars.update(self.task, completed=passed, description=f"{self.name}: {done}")
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            print(f"{self.name}: {done}, {passed:.0f} of {self.box:.0f} s", flush=True)
