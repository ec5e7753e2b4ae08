"""The project's commands: `nox --list` names them, `nox -s NAME -- OPTIONS` passes options on.

Every session makes its own environment under `.nox/` and reuses it. Installs go through
`constraints.txt`. On Linux without a GPU, take PyTorch's CPU wheel instead of several GB of CUDA:

    ATTN_ROSETTA_TORCH_INDEX=https://download.pytorch.org/whl/cpu nox -s conformance
"""

import os
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["conformance"]

ROOT = Path(__file__).parent
PYPROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
PIP = ["-m", "pip", "install", "-c", str(CONSTRAINTS)]
if torch_index := os.environ.get("ATTN_ROSETTA_TORCH_INDEX"):
    PIP += ["--extra-index-url", torch_index]

# Compiled programs are kept between runs: without them JAX takes most of a run's time. And threads
# that spin while they wait, as OpenMP's do, take it from whatever else the machine is doing.
ENV = {
    "OMP_WAIT_POLICY": "passive",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".nox" / "jax-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

# What must not be installed where one backend stands alone.
FOREIGN = {"numpy": ["torch", "jax", "flax"], "torch": ["jax", "flax"], "jax": ["torch"]}
REFUSE = """
import sys, importlib.util
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
sys.exit(f"not expected in this environment: {', '.join(found)}" if found else 0)
"""


def install(session: nox.Session, *requirements: str) -> None:
    """Install under the constraints, unless the environment was made from the same words."""
    words = [*PIP, *requirements, PYPROJECT.read_text("utf-8"), CONSTRAINTS.read_text("utf-8")]
    recipe = "\n".join(words)
    made_from = Path(session.virtualenv.location, "made-from.txt")
    if made_from.exists() and made_from.read_text("utf-8") == recipe:
        return
    done = session.run_install("python", *PIP, *requirements, silent=True)
    if done is not None:  # None: nox was told not to install
        made_from.write_text(recipe, "utf-8")


def group(*names: str) -> tuple[str, ...]:
    """The requirements of dependency groups in pyproject.toml."""
    return nox.project.dependency_groups(nox.project.load_toml(PYPROJECT), *names)


@nox.session
def conformance(session: nox.Session) -> None:
    """Hold all three backends against the contract, on every device found."""
    install(session, "-e", ".[all,conformance]")
    session.run("python", "-m", "conformance", "run", *session.posargs, env=ENV)


@nox.session
def tests(session: nox.Session) -> None:
    """Run everything: the suite, the house's own tests, doctests."""
    install(session, "-e", ".[all,conformance]", *group("test"))
    cores = [] if session.posargs else [f"-n{os.cpu_count() or 1}", "--dist=loadfile"]
    session.run("python", "-m", "pytest", "--doctest-modules", *cores, *session.posargs, env=ENV)


@nox.session
def mutants(session: nox.Session) -> None:
    """Prove that the suite catches every wrong implementation, and write the kill matrix."""
    install(session, "-e", ".[all,conformance]")
    page = [] if session.posargs else ["--page", "docs/kill-matrix.md"]
    session.run("python", "-m", "conformance", "mutants", *page, *session.posargs, env=ENV)


@nox.session
def atlas(session: nox.Session) -> None:
    """Hold other libraries against the contract, and write docs/atlas.md."""
    install(session, "-e", ".[all,conformance]", *group("peers"))
    page = [] if session.posargs else ["--page", "docs/atlas.md"]
    session.run("python", "-m", "conformance", "atlas", *page, *session.posargs, env=ENV)


@nox.session
@nox.parametrize("backend", list(FOREIGN), ids=list(FOREIGN))
def alone(session: nox.Session, backend: str) -> None:
    """Install one backend and prove that it needs neither of the others."""
    install(session, "-e", f".[{backend},conformance]")
    session.run("python", "-c", REFUSE, *FOREIGN[backend])
    suite = ["-m", "conformance", "run", "--backend", backend]
    session.run("python", *suite, *session.posargs, env=ENV)
    session.run("python", "-m", "pytest", "--doctest-modules", f"attn_{backend}")


@nox.session
def shapes(session: nox.Session) -> None:
    """Run the suite with every shape annotation executed."""
    install(session, "-e", ".[all,conformance]", *group("shapes"))
    hook = "--jaxtyping-packages=attn_numpy,attn_torch,attn_jax,beartype.beartype"
    suite = ["-m", "pytest", "conformance", hook, "-m", "not untyped"]
    session.run("python", *suite, *session.posargs, env=ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    install(session, "-e", ".[all,conformance]", *group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def translate(session: nox.Session) -> None:
    """Train the example's models in PyTorch and JAX, and translate on all three backends."""
    install(session, "-e", ".[all]", *group("examples"))
    session.run("python", "-m", "examples.translate", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against what the frameworks ship, and write docs/benchmarks.md."""
    install(session, "-e", ".[all,conformance]")
    page = [] if session.posargs else ["--page", "docs/benchmarks.md"]
    session.run("python", "-m", "benchmarks", *page, *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, install it in a fresh environment, run the suite outside the repository."""
    install(session, *group("build"))
    with tempfile.TemporaryDirectory() as outside:
        session.run("python", "-m", "build", "--outdir", outside)
        (wheel,) = Path(outside).glob("*.whl")
        session.run("python", "-m", "venv", f"{outside}/fresh")
        python = f"{outside}/fresh/{'Scripts' if os.name == 'nt' else 'bin'}/python"
        wanted = f"attn-rosetta[numpy,conformance] @ {wheel.as_uri()}"
        session.run(python, *PIP, wanted, external=True, silent=True)
        with session.chdir(outside):
            suite = ["-m", "conformance", "run", "--backend", "numpy"]
            session.run(python, *suite, *session.posargs, external=True)
