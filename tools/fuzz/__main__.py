"""Random calls of attention at the sizes where the way to compute it changes, against the textbook.

python -m tools.fuzz --backend torch --calls 2000 --seed 0   # a line for each call that differs
python -m tools.fuzz --backend torch --seed 17 --numbers 3   # one call alone: its two numbers

A structure (sizes, kinds of masks, options) costs JAX a compilation, so each is drawn once and met
with several sets of numbers: lengths, ids, arrays. What is expected is the textbook's in float64,
and a difference is judged by the suite's rule: it counts where it is more than the worst of sixteen
orders of evaluation excuses. Hidden keys and values are NaN or infinite in a part of the calls, and
in others allowed ones are, whose rows must be NaN. A mask is often one that was used before: at
another offset, and with other content of the arrays that it was made of.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator

import numpy as np

from conformance.subjects import load

from .calls import draw
from .judge import check, near

NUMBERS = {"jax": 16}  # how many sets of numbers meet a structure; elsewhere one


def fuzz(backend: str, calls: int, seed: int, numbers: int | None = None) -> Iterator[str]:
    """Check calls one by one: yield "" for a right one, else what is wrong and how to see it."""
    subject, many = load(backend, "cpu"), NUMBERS.get(backend, 1)
    for i in range(calls):
        at = (seed + i // many, i % many) if numbers is None else (seed, numbers)
        call = draw(*at, "gradients" in subject.capabilities, many == 1)
        try:
            with np.errstate(all="ignore"):
                check(subject, call)
            yield ""
        except Exception as error:
            again = f"python -m tools.fuzz --backend {backend} --seed {at[0]} --numbers {at[1]}"
            yield f"{'near: ' * near(error)}{again}\n  {call}\n  {type(error).__name__}: {error}"
        if backend == "jax" and i % many == many - 1:
            sys.modules["jax"].clear_caches()  # hundreds of programs run out of memory maps


def main(arguments: list[str] | None = None) -> int:
    """Check many calls, or one; the exit status is 1 where one is wrong."""
    parser = argparse.ArgumentParser("tools.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", required=True, choices=("numpy", "torch", "jax"))
    parser.add_argument("--calls", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="the first structure's seed")
    parser.add_argument("--numbers", type=int, help="one call alone: the seed of its numbers")
    options = parser.parse_args(arguments)
    calls = options.calls if options.numbers is None else 1
    found: Iterable[str] = fuzz(options.backend, calls, options.seed, options.numbers)
    try:
        from rich.progress import track

        found = track(found, options.backend, calls)
    except ImportError:
        pass
    wrong = 0
    for text in filter(None, found):
        print(text, flush=True)
        wrong += not text.startswith("near: ")
    print(f"{options.backend}: {calls} calls from seed {options.seed}, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
