"""Compiled programs are shared by processes, and one that is not whole must not fail a run.

JAX writes them in place, so a process may read what another is still writing; it then warns and
compiles. Both of our settings make errors of warnings.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import jax

def test_doubles():
    assert jax.jit(lambda x: x + x)(3) == 6
"""


def compiled_by(settings: Path, folder: Path) -> subprocess.CompletedProcess:
    """Run a test that compiles a program, under these settings, with programs kept in a folder."""
    test = folder / "test_program.py"
    test.write_text(PROGRAM, "utf-8")
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    given = [f"-c{settings}", f"--rootdir={folder}", "-rw", str(test)]
    run = [sys.executable, "-m", "pytest", *given]
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("settings", ["pyproject.toml", "conformance/pytest.ini"])
def test_a_program_cut_short_is_compiled_again(settings, tmp_path):
    first = compiled_by(ROOT / settings, tmp_path)
    assert first.returncode == 0, first.stdout
    kept = list((tmp_path / "programs").glob("*-cache"))
    assert kept, "JAX kept no program: nothing was read"
    for program in kept:
        program.write_bytes(program.read_bytes()[:100])
    again = compiled_by(ROOT / settings, tmp_path)
    assert again.returncode == 0, again.stdout
