"""The project's commands: `nox --list` names them, `nox -s NAME -- OPTIONS` passes options on.

Most sessions share one environment, which `environment` makes. The others prove something about an
environment, so they make their own. All of them lie under `.nox/` and are kept. On Linux without a
GPU, take PyTorch's CPU wheel instead of several GB of CUDA:

    ATTN_ROSETTA_TORCH_INDEX=https://download.pytorch.org/whl/cpu nox -s conformance
"""

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["conformance"]

ROOT = Path(__file__).parent
PYPROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = nox.project.load_toml(PYPROJECT)

# Python compiles what is imported, once; pip would compile all of PyTorch and JAX.
PIP = ["-m", "pip", "install", "--no-compile"]
if torch_index := os.environ.get("ATTN_ROSETTA_TORCH_INDEX"):
    PIP += ["--extra-index-url", torch_index]
PINNED = [*PIP, "-c", str(CONSTRAINTS)]

# Compiled programs are kept between runs: without them JAX takes most of a run's time. Python's
# bytecode is kept whatever a container says: pip makes none, and without it PyTorch and JAX take
# three times as long to import. And threads that spin while they wait, as OpenMP's do, take time
# from whatever else the machine is doing.
ENV = {
    "OMP_WAIT_POLICY": "passive",
    "PYTHONDONTWRITEBYTECODE": "",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".nox" / "jax-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

# JAX compiles in half the time, programs that round otherwise. At level 0 it would take a quarter,
# but there two of JAX's paths differ by more than a gradient may. `alone`, `conformance`, `lowest`
# and `newest` compile as users do. XLA refuses a flag that it does not know: these are for the
# pinned versions.
FLAGS = ("backend_optimization_level=1", "cpu_use_fusion_emitters=false",
         "cpu_parallel_codegen_split_count=1")  # fmt: skip
QUICKLY = ENV | {"XLA_FLAGS": " ".join(f"--xla_{flag}" for flag in FLAGS)}

# The environment that most sessions share, and how a session asks for it.
BIN = "Scripts" if os.name == "nt" else "bin"
SHARED = {"venv_backend": "none", "requires": ["environment"]}

# What must not be installed where one backend stands alone.
FOREIGN = {"numpy": ["torch", "jax", "flax"], "torch": ["jax", "flax"], "jax": ["torch"]}
REFUSE = """
import sys, importlib.util
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
sys.exit(f"not expected in this environment: {', '.join(found)}" if found else 0)
"""

# The files that a forge reads, by the schema that check-jsonschema has for them.
SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/*.yml",
    "citation-file-format": "CITATION.cff",
}

# What the site's tests need of the system: Debian's package, and the program in it.
BROWSER = {"chromium": "chromium", "nodejs": "node"}

# The tests that compile, and the one that sees what is imported: what a new version breaks first.
COMPILING = ["compile", "compilations", "traced", "shared_programs", "kernel", "isolation"]


def install(session: nox.Session, *requirements: str, pip: list[str] = PINNED) -> None:
    """Install, unless the environment was made from the same words."""
    words = [*pip, *requirements, PYPROJECT.read_text("utf-8"), CONSTRAINTS.read_text("utf-8")]
    recipe = "\n".join(words)
    made_from = Path(session.virtualenv.location, "made-from.txt")
    if made_from.exists() and made_from.read_text("utf-8") == recipe:
        return
    done = session.run_install("python", *pip, *requirements, silent=True)
    if done is not None:  # None: nox was told not to install
        made_from.write_text(recipe, "utf-8")


def group(*names: str) -> tuple[str, ...]:
    """The requirements of dependency groups in pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, *names)


def run(session: nox.Session, *words: str, env: dict[str, str] = ENV) -> None:
    """Run the shared environment's Python."""
    if session.python:
        session.error("the shared environment has the Python that runs nox: got another by option")
    python = Path(session.cache_dir).parent / "environment" / BIN / "python"
    session.run(str(python), *words, env=env)


def parallel() -> list[str]:
    """Pytest's options for a process on each core; a file's cases share what the oracle found.

    Files are taken in pytest's order: sorted by how many tests they have, as pytest-xdist would,
    the few that take minutes come last, and one core waits for the other.
    A process that dies is not replaced: with files kept together, pytest-xdist would wait for ever.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # the cores this process may use: Linux only
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    return [f"-n{cores}", "--dist=loadfile", "--no-loadscope-reorder", "--max-worker-restart=0"]


@nox.session
def environment(session: nox.Session) -> None:
    """Make the environment that most sessions share."""
    groups = group("examples", "onnx", "models", "shapes", "combinations", "mutate", "lint", "site")
    install(session, "-e", ".[all,conformance]", *groups)


@nox.session(**SHARED)
def conformance(session: nox.Session) -> None:
    """Check all three backends against the contract, on every device found."""
    run(session, "-m", "conformance", "run", *session.posargs)


@nox.session(**SHARED)
def tests(session: nox.Session) -> None:
    """Run everything: the suite, the project's own tests, doctests."""
    cores = [] if session.posargs else parallel()
    slowest = ["--durations=30", "--durations-min=5"]
    words = ["-m", "pytest", "--doctest-modules", *slowest, *cores, *session.posargs]
    run(session, *words, env=QUICKLY)


@nox.session(requires=["environment"])
def interop(session: nox.Session) -> None:
    """Test inside other libraries: their models, and their weights."""
    run(session, "-m", "pytest", *parallel(), "tests/interop_transformers.py")
    install(session, "-e", ".[all,conformance]", *group("peers", "interop"))
    session.run("python", "-m", "pytest", "tests/interop_weights.py", env=ENV)


@nox.session(**SHARED)
def mutants(session: nox.Session) -> None:
    """Prove that the suite catches every wrong implementation, and write the kill matrix."""
    page = [] if session.posargs else ["--page", "docs/kill-matrix.md"]
    run(session, "-m", "tools.mutants", *page, *session.posargs)


@nox.session(**SHARED)
def mutate(session: nox.Session) -> None:
    """Change the backends' source for ten minutes, see who notices, and write docs/mutation.*."""
    run(session, "-m", "tools.mutate", "--page", "docs/mutation.md", *session.posargs)


@nox.session
def atlas(session: nox.Session) -> None:
    """Check other libraries against the contract, and write docs/atlas.md."""
    install(session, "-e", ".[all,conformance]", *group("peers"))
    page = [] if session.posargs else ["--page", "docs/atlas.md"]
    session.run("python", "-m", "tools.atlas", *page, *session.posargs, env=ENV)


@nox.session
@nox.parametrize("backend", list(FOREIGN), ids=list(FOREIGN))
def alone(session: nox.Session, backend: str) -> None:
    """Install one backend and prove that it needs neither of the others.

    The first case of each test is enough: a test's other cases import nothing else. What `tests`
    compiles quickly is compiled here as users compile it.
    """
    install(session, "-e", f".[{backend},conformance]")
    session.run("python", "-c", REFUSE, *FOREIGN[backend])
    suite = ["-m", "conformance", "smoke", "--backend", backend, *parallel()]
    session.run("python", *suite, *session.posargs, env=ENV)
    others = "--ignore-glob=*/interop/*"  # which are about libraries that are not here
    session.run("python", "-m", "pytest", "--doctest-modules", others, f"attn_{backend}", env=ENV)


@nox.session(**SHARED)
def shapes(session: nox.Session) -> None:
    """Run the suite with every shape annotation executed."""
    hook = "--jaxtyping-packages=attn_numpy,attn_torch,attn_jax,beartype.beartype"
    cores = [] if session.posargs else parallel()
    words = ["-m", "pytest", "conformance", hook, "-m", "not untyped", *cores, *session.posargs]
    run(session, *words, env=QUICKLY)


@nox.session(**SHARED)
def lint(session: nox.Session) -> None:
    """Check style, format, types, and the files that a forge reads."""
    run(session, "-m", "ruff", "check", *session.posargs)
    run(session, "-m", "ruff", "format", "--check")
    run(session, "-m", "mypy")
    for schema, files in SCHEMAS.items():
        paths = [str(path) for path in Path().glob(files)]
        options = ["--builtin-schema", f"vendor.{schema}", "--default-filetype", "yaml"]
        run(session, "-m", "check_jsonschema", *options, *paths)


@nox.session(venv_backend="none")
def copies(session: nox.Session) -> None:
    """Check that the files which all backends share are equal; `-- --fix` spreads an edit."""
    session.run("python", "tools/copies.py", *session.posargs)


def versions(session: nox.Session) -> None:
    """Run the suite, and the tests that compile, in versions other than the pinned ones."""
    session.run("python", "-m", "pip", "freeze", "--exclude-editable")
    files = ["conformance", *(f"tests/test_{name}.py" for name in COMPILING)]
    words = session.posargs or [*parallel(), *files]
    session.run("python", "-m", "pytest", *words, env=ENV)


@nox.session(python=nox.project.python_versions(PROJECT))
def lowest(session: nox.Session) -> None:
    """Test with the lowest versions that pyproject.toml allows."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    floors = {word.replace(">=", "==", 1) for words in extras for word in words if ">=" in word}
    install(session, "-e", ".[all,conformance]", *sorted(floors), pip=PIP)
    versions(session)


@nox.session(python=nox.project.python_versions(PROJECT))
def newest(session: nox.Session) -> None:
    """Test with the newest versions that the registries have today."""
    newer = ["--upgrade", "--upgrade-strategy", "eager"]
    session.run_install("python", *PIP, *newer, "-e", ".[all,conformance]", silent=True)
    versions(session)


@nox.session(**SHARED)
def translate(session: nox.Session) -> None:
    """Train the example's models in PyTorch and JAX, and translate on all three backends."""
    run(session, "-m", "examples.translate", *session.posargs)


@nox.session(**SHARED)
def bench(session: nox.Session) -> None:
    """Measure against what the frameworks ship; write docs/benchmarks.md and its history."""
    page = [] if session.posargs else ["--page", "docs/benchmarks.md"]
    run(session, "-m", "benchmarks", *page, *session.posargs)


@nox.session(**SHARED)
def site(session: nox.Session) -> None:
    """Build the site into site/_build/html: every example runs, and a warning is an error."""
    strict = ["--builder=html", "--fail-on-warning", "--keep-going", "--nitpicky"]
    run(session, "-m", "sphinx", *strict, *session.posargs, "site", "site/_build/html")


@nox.session(name="site-browser", venv_backend="none", requires=["site"])
def site_browser(session: nox.Session) -> None:
    """Test the site in Chromium, and its scripts in Node; on Debian both are installed."""
    missing = [name for name, program in BROWSER.items() if shutil.which(program) is None]
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        session.run("apt-get", "update", external=True, silent=True)
        session.run("apt-get", "install", "--yes", *missing, external=True, silent=True)
    elif missing:
        session.skip(f"these tests need Chromium and Node: install {' and '.join(missing)}")
    cores = [] if session.posargs else parallel()
    run(session, "-m", "pytest", "site/tests", *cores, *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, install it in a fresh environment, use it outside the repository.

    The first case of each test is enough: it imports every file that the wheel must hold.
    """
    install(session, *group("build"))
    with tempfile.TemporaryDirectory() as outside:
        session.run("python", "-m", "build", "--outdir", outside)
        (wheel,) = Path(outside).glob("*.whl")
        session.run("python", "-m", "venv", f"{outside}/fresh")
        fresh = f"{outside}/fresh/{BIN}"
        wanted = f"attn-rosetta[numpy,conformance] @ {wheel.as_uri()}"
        session.run(f"{fresh}/python", *PINNED, wanted, external=True, silent=True)
        with session.chdir(outside):
            suite = [f"{fresh}/attn-conformance", "smoke", "--backend", "numpy"]
            session.run(*suite, *session.posargs, external=True)
