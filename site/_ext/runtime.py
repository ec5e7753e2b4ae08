"""Python for the browser, put together when the site is built: every byte is checked.

The interpreter is npm's `pyodide` (package-lock.json pins it). Its lock file names NumPy's wheel
for the browser and the wheel's SHA-256; the wheel itself is neither on npm nor on PyPI, so it lies
in python/assets/: any copy with that SHA-256 will do. The pure wheels come from PyPI, pinned in
python/wheels.txt. Where npm or the network is missing, the build says that Python is not in it, and
all else stands.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

from sphinx.util import logging

SITE = Path(__file__).parents[1]
ROOT, OWN = SITE.parent, SITE / "python"
PYODIDE = SITE / "node_modules" / "pyodide"
WHEELS = SITE / "_build" / "wheels"
CORE = ("pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip")
DEPENDS = {"jaxtyping": ["wadler-lindig"]}
ZIPS = {
    "attn_numpy.zip": [
        (ROOT, "attn_numpy/**/*.py"),
        (OWN, "page.py"),
        (SITE / "_ext", "execute.py"),
    ],
    "conformance.zip": [
        (ROOT, "conformance/*.py"),
        (ROOT, "conformance/CONTRACT.md"),
        (ROOT, "conformance/[cmorsv]*/**/*.py"),
        (ROOT, "conformance/vectors/*.json"),
        (ROOT, "conformance/vectors/*.safetensors"),
        (OWN, "judge.py"),
        (OWN, "exercise.py"),
    ],
}
LOG = logging.getLogger(__name__)


def fetch() -> None:
    """Fetch what the site's folder lacks. Raises OSError or CalledProcessError where it cannot.

    Raises ValueError where bytes are others than those that are pinned.
    """
    if version(PYODIDE / "package.json") != version(SITE / "package.json"):
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError("npm must be on the path: got none")
        install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(install, cwd=SITE, check=True, timeout=120)
    pins = set(re.findall(r"sha256:(\w+)", (OWN / "wheels.txt").read_text("utf-8")))
    if {digest(wheel) for wheel in WHEELS.glob("*.whl")} != pins:
        shutil.rmtree(WHEELS, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        pip += ["--only-binary=:all:", "--dest", WHEELS, "--requirement", OWN / "wheels.txt"]
        subprocess.run(pip, check=True, timeout=120)
    lock = json.loads((PYODIDE / "pyodide-lock.json").read_text("utf-8"))
    numpy = lock["packages"]["numpy"]
    if (found := digest(OWN / "assets" / numpy["file_name"])) != numpy["sha256"]:
        raise ValueError(f"{numpy['file_name']} must have Pyodide's SHA-256: got {found}")


def version(path: Path) -> str | None:
    """Return the version of Pyodide that a package.json is of, or asks for."""
    words = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return words.get("dependencies", {}).get("pyodide", words.get("version"))


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def assemble(folder: Path) -> None:
    """Write the interpreter, its packages with their lock file, and our own code to a folder."""
    pyodide = folder / "pyodide"
    pyodide.mkdir(parents=True, exist_ok=True)
    lock = json.loads((PYODIDE / "pyodide-lock.json").read_text("utf-8"))
    packages = {"numpy": lock["packages"]["numpy"]}
    packages |= {entry["name"]: entry for entry in map(pure, sorted(WHEELS.glob("*.whl")))}
    lock["packages"] = packages
    (pyodide / "pyodide-lock.json").write_text(json.dumps(lock), "utf-8")
    for path in (*(PYODIDE / name for name in CORE), *WHEELS.glob("*.whl"), *OWN.glob("assets/*")):
        shutil.copy(path, pyodide)
    for name, patterns in ZIPS.items():
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for base, pattern in patterns:
                for path in sorted(base.glob(pattern)):
                    archive.write(path, path.relative_to(base))


def pure(wheel: Path) -> dict:
    """Return the entry of a pure wheel in Pyodide's lock file."""
    word, version = wheel.name.split("-")[:2]
    name = word.replace("_", "-")
    return {
        "name": name,
        "version": version,
        "file_name": wheel.name,
        "install_dir": "site",
        "sha256": digest(wheel),
        "package_type": "package",
        "imports": [word],
        "depends": DEPENDS.get(name, []),
        "unvendored_tests": False,
    }


def begin(app, config) -> None:
    """Find out whether Python can be in this build."""
    try:
        fetch()
        config.python_in_build = True
    except (OSError, subprocess.SubprocessError) as error:
        config.python_in_build = False
        LOG.info("Python is not in this build: %s", error, color="yellow")


def finish(app, exception) -> None:
    """Put Python beside the pages."""
    if exception is None and app.builder.format == "html" and app.config.python_in_build:
        assemble(Path(app.outdir) / "python")
        for script in OWN.glob("*.mjs"):
            shutil.copy(script, Path(app.outdir) / "python")


def setup(app):
    app.add_config_value("python_in_build", False, "env")
    app.connect("config-inited", begin)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True}
