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
PARTS += ["narrow_caches"]


@pytest.mark.parametrize("part", PARTS)
def test_four_devices_answer_as_one(part):
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    settings = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles quickly
    environment = os.environ | devices | settings | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "jax_devices.py"), part]
    child = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert not child.returncode, child.stderr[-6000:]
