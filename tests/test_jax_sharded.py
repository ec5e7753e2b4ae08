"""JAX on eight devices: attention sharded by rows, samples and heads gives the oracle's answer.

`jax_sharded.py` says what is compared; each of its parts runs in a process that has the devices.
"""

import pytest
from test_jax_devices import run_part

PARTS = ["masks"]


@pytest.mark.parametrize("part", PARTS)
def test_devices_answer_as_the_oracle(part):
    run_part("jax_sharded.py", part, devices=8)
