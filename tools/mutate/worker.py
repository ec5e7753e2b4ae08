"""A worker: it has imported the frameworks and no backend, and forks a process for each task.

    python -m tools.mutate.worker FOLDER

Tasks come as JSON, a line each; answers go the same way. The worker starts no thread, so that what
it forks is whole.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from .mutant import BACKENDS, ROOT

WARM = (
    "pytest", "hypothesis", "numpy", "ml_dtypes", "safetensors.numpy", "threadpoolctl", "jaxtyping",
    "rich.progress", "jsonschema", "coverage", "conformance.conftest",
    "torch", "torch.nn.attention.flex_attention", "torch._dynamo", "safetensors.torch",
    "jax", "jax.numpy", "flax.nnx", "tools.mutate.child", "tools.mutate.record",
)  # fmt: skip


def main(folder: str) -> None:
    """Answer tasks until there are no more."""
    overlay = Path(folder).absolute()
    shutil.rmtree(overlay, ignore_errors=True)
    for backend in BACKENDS:
        shutil.copytree(ROOT / f"attn_{backend}", overlay / f"attn_{backend}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints no answer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in WARM:
            with contextlib.suppress(ImportError):  # a framework that is not installed
                import_module(name)
        sys.dont_write_bytecode = True  # a mutant's would be taken for the next one's
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), overlay)), file=answers, flush=True)


def answer(task: dict[str, Any], overlay: Path) -> dict[str, Any]:
    """Do a task in a forked process, with the task's file in place of the backend's."""
    work = import_module("tools.mutate.record" if task.get("record") else "tools.mutate.child")
    started, path = time.monotonic(), overlay / task.get("file", "none")
    if "text" in task:
        path.write_text(task["text"], "utf-8")
    try:
        told = forked(lambda tell: work.work(task, overlay, tell), task["limit"], overlay / "log")
    finally:
        if "text" in task:
            shutil.copy2(ROOT / task["file"], path)  # its time too: what is compiled stays valid
    return told | {"seconds": time.monotonic() - started}


def forked(work: Callable[[Callable], None], limit: float, log: Path) -> dict[str, Any]:
    """Run `work` in a process of its own; return what it told last, and how it ended if early."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work(lambda said: os.write(write, json.dumps(said).encode() + b"\n") and None)
        finally:
            os._exit(0)
    os.close(write)
    try:
        told, late = listen(read, time.monotonic() + limit)
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if "now" in told:
        how = "did not end" if late else "ended the process or took too long"
        text = log.read_text("utf-8", "replace")[-600:]
        return {"case": told["now"], "message": f"the case {how}\n{text}"}
    if told.get("case") and not told["message"]:
        told["message"] = log.read_text("utf-8", "replace")[-600:]
    return told or {"broken": log.read_text("utf-8", "replace")[-3000:]}


def listen(read: int, deadline: float) -> tuple[dict[str, Any], bool]:
    """Return the last line of a pipe, and whether it was waited for in vain."""
    text = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([read], [], [], left)[0]:
            break
        if not (more := os.read(read, 1 << 16)):
            return last(text), False
        text += more
        said = last(text)
        if text.endswith(b"\n") and "now" not in said:
            return said, False  # an end may take longer: threads of the process
    return last(text), True


def last(text: bytes) -> dict[str, Any]:
    lines = text.split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else {}


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    finally:
        os._exit(0)  # the frameworks would take their time to tidy up
