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
    "modules steps narrow_caches greedy layers heads_and_rows",
]
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiled


@pytest.mark.parametrize("parts", PARTS)
def test_four_devices_answer_as_one(parts):
    run_parts("jax_devices.py", parts, QUICKLY | {"JAX_ENABLE_X64": "1"})


def run_parts(file, parts, settings, devices=4):
    """Run some parts of a file in a process that has several devices; to start one takes long."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = os.environ | flags | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | settings
    command = [sys.executable, str(ROOT / "tests" / file), *parts.split()]
    child = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert not child.returncode, child.stderr[-6000:]
