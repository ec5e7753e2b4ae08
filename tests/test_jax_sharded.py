"""JAX on eight devices: attention sharded by rows, samples and heads gives the oracle's answer.

`jax_sharded.py` says what is compared and `jax_moved.py` what is counted; their parts run in
processes that have the devices.
"""

import os
import re
import subprocess
import sys

import pytest
from test_jax_devices import QUICKLY, ROOT, run_parts

ANSWERS = [
    "masks tiles halves hygiene",
    "options worlds traced meshes heads refusals mutants",
]
MOVED = "exchanged gathered_and_ring samples_and_heads chosen tables"


@pytest.mark.parametrize("parts", ANSWERS)
def test_devices_answer_as_the_oracle(parts):
    run_parts("jax_sharded.py", parts, QUICKLY, devices=8)


def test_devices_move_what_is_needed():
    run_parts("jax_moved.py", MOVED, {}, devices=8)


def test_example_learns_on_four_devices_as_on_one():
    command = [sys.executable, "-m", "examples.sharded_jax", "3"]
    told = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
    shown = subprocess.run(command, env=os.environ | QUICKLY, **told).stdout
    losses = re.findall(r"loss ([\d.]+) on one device, ([\d.]+) on 4", shown)
    assert len(losses) == len({*losses}) == 3, shown
    assert all(one == four for one, four in losses), shown


def test_a_chapter_of_the_suite_goes_through_three_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = os.environ | flags | QUICKLY | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "played_devices", "-p", "no:xdist"]
    command += ["conformance/test_hygiene.py", "--backend", "jax", "--device", "cpu"]
    told = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    child = subprocess.run(command, env=environment, **told)
    assert not child.returncode, child.stdout[-6000:] + child.stderr[-2000:]
    played = re.search(r"(\d+) calls were played by 3 devices", child.stdout)
    assert played, child.stdout[-2000:]
    assert int(played[1]) > 50, "the suite goes past the devices"
