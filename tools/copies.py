"""Checks that files which backends share are the same, and spreads an edit of one of them.

python tools/copies.py                           # fails where copies differ
python tools/copies.py --fix                     # copies the one that was edited to the others
python tools/copies.py --fix --from attn_torch   # says which one to copy
"""

import argparse
import subprocess
import sys
from pathlib import Path

BACKENDS = ("attn_numpy", "attn_torch", "attn_jax")
SHARED = ("checks.py", "draw.py", "layouts.py", "convert.py", "__main__.py")
FILES = dict.fromkeys(SHARED, BACKENDS)
FILES["shard_checks.py"] = ("attn_torch", "attn_jax")  # NumPy has one device
COMMAND = "nox -s copies -- --fix"


def different(root: Path) -> list[str]:
    """Return the files that are not the same bytes wherever they are."""
    return [f for f, there in FILES.items() if len({_bytes(root / b / f) for b in there}) > 1]


def fix(root: Path, source: str | None) -> str:
    """Make the copies the same, from `source` or from the one edited since the last commit.

    Returns what was done. Raises ValueError, and changes nothing, where that is not one file.
    """
    sources = {file: source or _edited(root, file) for file in different(root)}
    for file, backend in sources.items():
        if not (root / backend / file).is_file():
            raise ValueError(f"{backend} must have what is to be copied: got no {file}")
    for file, backend in sources.items():
        content = (root / backend / file).read_bytes()
        for other in FILES[file]:
            (root / other / file).write_bytes(content)
    return "\n".join(f"{file}: copied from {backend}" for file, backend in sources.items())


def _edited(root: Path, file: str) -> str:
    """Return the one backend in which a file differs from the last commit."""
    paths = [f"{backend}/{file}" for backend in BACKENDS]
    command = ["git", "diff", "--name-only", "--relative", "HEAD", "--", *paths]
    done = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=True)
    edited = [path.split("/")[0] for path in done.stdout.splitlines()]
    if len(edited) != 1:
        got = ", ".join(edited) or "none"
        raise ValueError(f"{file} must be edited in one backend, or choose with --from: got {got}")
    return edited[0]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main(words: list[str], root: Path) -> str | None:
    """Check or fix; return what is wrong."""
    parser = argparse.ArgumentParser(description="Check that the backends' shared files are equal.")
    parser.add_argument("--fix", action="store_true", help="copy the edited one to the others")
    parser.add_argument("--from", dest="source", choices=BACKENDS, help="the one to copy")
    options = parser.parse_args(words)
    if options.source and not options.fix:
        parser.error("--from needs --fix")
    try:
        if options.fix:
            print(fix(root, options.source) or "nothing to do")
    except ValueError as error:
        return str(error)
    files = different(root)
    return (
        f"not the same in the three backends, run {COMMAND}: {', '.join(files)}" if files else None
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parents[1]))
