"""python -m examples.translate: train in PyTorch and in JAX, then translate on all backends."""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .corpus import CHINESE, PAIRS, decode_chinese, words
from .decode import BACKENDS, cross_attention, load, translate
from .picture import draw, text
from .settings import ENOUGH

SENTENCE = "Machine learning is fun"


def main(arguments: list[str] | None = None) -> int:
    """Train, save, translate, draw."""
    parser = argparse.ArgumentParser("examples.translate", description=__doc__)
    parser.add_argument("sentence", nargs="?", default=SENTENCE, help="made of the corpus' words")
    parser.add_argument("--weights", help="a file saved before, instead of training")
    parser.add_argument("--folder", default=".translate", help="where weights and picture go")
    options = parser.parse_args(arguments)
    folder, console = Path(options.folder), Console()
    folder.mkdir(parents=True, exist_ok=True)
    files = [Path(options.weights)] if options.weights else train(folder, console)
    agreed = [compare(path, console) for path in files]
    show(files[0], options.sentence, folder / "attention.svg", console)
    return 0 if all(agreed) else 1


def train(folder: Path, console: Console) -> list[Path]:
    """Train a model in each framework and save it."""
    paths = []
    for framework in ("torch", "jax"):
        trainer = import_module(f".train_{framework}", __package__)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        start = time.perf_counter()
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"{framework}: learning", total=None)
            for steps, (model, loss) in enumerate(trainer.train(), 1):  # noqa: B007
                progress.update(task, description=f"{framework}: step {steps}, loss {loss:.4f}")
        paths.append(folder / f"{framework}.safetensors")
        import_module(f"attn_{framework}").save(model, paths[-1])
        seconds = time.perf_counter() - start
        console.print(f"{framework}: loss below {ENOUGH} after {steps} steps, {seconds:.0f} s")
    return paths


def compare(path: Path, console: Console) -> bool:
    """Translate the corpus on every backend, cached and not; say whether all tokens agree."""
    sentences = [english for english, _ in PAIRS]
    table = Table("backend", "cached", "right", "tokens", title=str(path))
    first, agree = None, True
    for backend in BACKENDS:
        model = load(backend, path)
        for cached in (True, False):
            tokens = translate(backend, model, sentences, cached=cached)
            first = tokens if first is None else first
            same = np.array_equal(tokens, first)
            right = sum(
                decode_chinese(row) == zh for row, (_, zh) in zip(tokens, PAIRS, strict=True)
            )
            share = f"{right} of {len(PAIRS)}"
            table.add_row(backend, str(cached), share, "identical" if same else "different")
            agree &= same and right == len(PAIRS)
    console.print(table)
    return agree


def show(path: Path, sentence: str, picture: Path, console: Console) -> None:
    """Translate one sentence, and show where each written character looked."""
    model = load("numpy", path)
    (tokens,) = translate("numpy", model, [sentence])
    weights = cross_attention("numpy", model, sentence, tokens)
    characters = [CHINESE[token] for token in tokens[: len(weights)]]
    console.print(f"{sentence} -> {decode_chinese(tokens)}", highlight=False)
    console.print(text(weights, words(sentence), characters), highlight=False, markup=False)
    draw(weights, words(sentence), characters, picture)
    console.print(f"drawn to {picture}")


if __name__ == "__main__":
    sys.exit(main())
