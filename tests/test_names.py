"""One class has one name in the repository: who searches for it finds it alone."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What is written once for each backend, or each backend of Keras, counts as one text.
MIRRORED = re.compile(r"\b(attn|keras)_(numpy|torch|jax)\b")
FOLDERS = ("attn_*", "conformance", "tools", "benchmarks", "examples", "tests")


def classes(root: Path) -> dict[str, set[str]]:
    """Return in which files a class of each name is defined; a test may have classes of its own."""
    places = defaultdict(set)
    for path in sorted(path for folder in FOLDERS for path in root.glob(f"{folder}/**/*.py")):
        if path.is_relative_to(root / "tests") and path.name.startswith("test_"):
            continue
        place = MIRRORED.sub(r"\1_*", path.relative_to(root).as_posix())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(place)
    return places


def shared_names(root: Path) -> list[str]:
    return [
        f"{name} in {', '.join(sorted(places))}"
        for name, places in classes(root).items()
        if len(places) > 1
    ]


def test_a_class_has_a_name_of_its_own():
    assert len(classes(ROOT)) > 100
    shared = shared_names(ROOT)
    assert not shared, "rename all classes but one of a name:\n" + "\n".join(shared)


def test_a_name_that_two_classes_share_is_found(tmp_path):
    places = ("attn_numpy/a.py", "attn_jax/a.py", "tests/helper.py", "tests/test_a.py")
    for name, place in zip(("Own", "Own", "Call", "Call"), places, strict=True):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(f"class {name}: ...\n", "utf-8")
    assert shared_names(tmp_path) == []
    (tmp_path / "attn_torch").mkdir()
    (tmp_path / "attn_torch/b.py").write_text("def f():\n    class Own: ...\n", "utf-8")
    assert shared_names(tmp_path) == ["Own in attn_*/a.py, attn_*/b.py"]
