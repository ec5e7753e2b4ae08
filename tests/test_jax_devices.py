"""JAX on four devices: sharded by sample or by head it gives the single device's answer, in place.

`jax_devices.py` says what is compared; each of its parts runs in a process that has four devices.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ["shard_map", "explicit_axes", "automatic_axes", "other_dims", "modules", "steps"]
PARTS += ["narrow_caches", "greedy", "layers"]
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiled


@pytest.mark.parametrize("part", PARTS)
def test_four_devices_answer_as_one(part):
    run_part("jax_devices.py", part, QUICKLY | {"JAX_ENABLE_X64": "1"})


def run_part(file, part, settings, devices=4):
    """Run a part of a file in a process that has several devices."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = os.environ | flags | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | settings
    command = [sys.executable, str(ROOT / "tests" / file), part]
    child = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert not child.returncode, child.stderr[-6000:]
