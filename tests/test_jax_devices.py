"""JAX on four devices: sharded by sample or by head it gives the single device's answer, in place.

`jax_devices.py` says what is compared; its parts run in processes that have four devices.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = [
    "shard_map explicit_axes automatic_axes other_dims",
    "modules steps narrow_caches greedy layers heads_and_rows second_gradients",
]
# How a process compiles quickly: of machine code alone, XLA still rewrites what is computed
QUICKLY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
}


@pytest.mark.parametrize("parts", PARTS)
def test_four_devices_answer_as_one(parts):
    run_parts("jax_devices.py", parts, 4, JAX_ENABLE_X64="1")


def run_parts(file, parts, devices, **settings):
    """Run some parts of a file in a process that has several devices; to start one takes long."""
    command = [sys.executable, str(ROOT / "tests" / file), *parts.split()]
    environment = on_devices(devices, ROOT) | settings
    child = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert not child.returncode, child.stderr[-6000:]


def on_devices(count, *paths):
    """Return the environment of a process that has devices, and compiles quickly."""
    flags = f"{QUICKLY['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    places = os.pathsep.join(map(str, paths))
    own = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": places}
    return os.environ | QUICKLY | own
