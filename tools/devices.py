"""Which accelerators torch and JAX find here; each is asked in a process of its own.

A framework that has been asked holds memory of the device until its process ends.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

PACKAGES = {
    "numpy": ("numpy",),
    "torch": ("torch", "triton"),
    "jax": ("jax", "jaxlib", "flax", "jax-cuda13-plugin", "jax-cuda12-plugin"),
}


@dataclass
class Accelerator:
    """One device: what kind it is, its place among its kind, and which backends can use it."""

    kind: str  # as torch names it: cuda, xpu, mps, tpu; or cpu
    index: int
    name: str
    memory: float | None = None  # GiB
    count: int = 1  # how many of this name there are; the first one is used
    backends: list[str] = field(default_factory=list)


def ask(backend: str) -> dict:
    """Return versions and devices of one framework, in this process."""
    if not find_spec(backend):
        return {"versions": {}, "devices": [], "why": f"{backend} is not installed"}
    found = {"versions": versions(backend), "devices": []}
    try:
        found["devices"] = FIND[backend]()
    except Exception as error:  # a broken installation is a fact about this machine
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        found["why"] = f"{backend} cannot be asked: {reason}"
    return found


def versions(backend: str) -> dict[str, str]:
    """Return the versions of a backend's packages that are installed."""
    found = {}
    for name in PACKAGES[backend]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _numpy() -> list[dict]:
    return [{"kind": "cpu", "index": 0, "name": "cpu"}]


def _torch() -> list[dict]:
    import torch

    found = _numpy()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            memory = round(about.total_memory / 2**30, 1)
            found.append({"kind": "cuda", "index": index, "name": about.name, "memory": memory})
    if torch.backends.mps.is_available():
        found.append({"kind": "mps", "index": 0, "name": "Apple MPS"})
    if torch.xpu.is_available():
        found.append({"kind": "xpu", "index": 0, "name": torch.xpu.get_device_name(0)})
    return found


def _jax() -> list[dict]:
    import jax

    found = _numpy()
    for device in jax.devices():
        if device.platform != "cpu":
            kind = "cuda" if device.platform == "gpu" else device.platform
            found.append({"kind": kind, "index": device.id, "name": device.device_kind})
    return found


FIND = {"numpy": _numpy, "torch": _torch, "jax": _jax}


def discover(root: str, environment: dict[str, str], seconds: float = 60) -> dict[str, dict]:
    """Ask every framework in a child process; one that does not answer in time has no device."""
    found = {}
    for backend in FIND:
        command = [sys.executable, "-m", "tools.devices", backend]
        try:
            done = subprocess.run(
                command,
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
            )
            found[backend] = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
            why = f"{backend} did not say what it has: {type(error).__name__}"
            found[backend] = {"versions": {}, "devices": [], "why": why}
    return found


def choose(found: dict[str, dict], device: str) -> list[Accelerator]:
    """Return the devices to run on: each accelerator of another name once, or what is asked for."""
    chosen: dict[tuple[str, str], Accelerator] = {}
    for backend, report in found.items():
        own: dict[tuple[str, str], int] = {}
        for one in report["devices"]:
            wanted = one["kind"] != "cpu" if device == "auto" else one["kind"] == device
            if not wanted:
                continue
            key = (one["kind"], one["name"])
            own[key] = own.get(key, 0) + 1
            made = Accelerator(one["kind"], one["index"], one["name"])
            entry = chosen.setdefault(key, made)
            entry.memory = entry.memory or one.get("memory")
            entry.count = max(entry.count, own[key])
            if backend not in entry.backends:
                entry.backends.append(backend)
    return list(chosen.values())


def absent(backend: str, report: dict, accelerator: Accelerator) -> str:
    """Say why a backend cannot run on a device."""
    if "why" in report:
        return report["why"]
    if backend == "numpy":
        return "NumPy computes on the CPU only"
    names = [f"{one['name']} ({one['kind']})" for one in report["devices"] if one["name"] != "cpu"]
    there = ", ".join(["cpu", *names])
    return f"{backend} does not find {accelerator.name}; it finds: {there}"


def environment(base: dict[str, str], accelerator: Accelerator, all_of: list[Accelerator]) -> dict:
    """Return a child's environment; it sees one CUDA device where the machine has different ones.

    JAX's preallocation is off, so that two processes can share a device; what a caller has set
    stays as it is.
    """
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | base
    if accelerator.kind == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    elif sum(one.kind == "cuda" for one in all_of) > 1 and accelerator.kind == "cuda":
        visible = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        index = accelerator.index
        env["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
    return env


def driver() -> dict[str, str]:
    """Return the NVIDIA driver's version by device name, as nvidia-smi tells, or nothing."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return {name.strip(): number.strip() for name, _, number in rows} if not done.returncode else {}


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(json.dumps(ask(sys.argv[1])))
