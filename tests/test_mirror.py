"""The mirror: the three backends have the same files, names, order, parameters, bodies and words.

What may differ stands in mirror_exceptions.toml, with reasons; some files are byte for byte equal.
"""

import tomllib
from pathlib import Path

import pytest
from mirror import BACKENDS, complaints

from tools import copies

HERE = Path(__file__).parent
EXCEPTIONS = tomllib.loads((HERE / "mirror_exceptions.toml").read_text("utf-8"))


def test_backends_mirror_each_other():
    found = complaints(HERE.parent, EXCEPTIONS)
    assert not found, "\n".join(["not the same in the three backends:", *found])


def test_copies_are_the_same_byte_for_byte():
    different = copies.different(HERE.parent)
    assert not different, f"not the same in the three backends: {different}, run {copies.COMMAND}"


SOURCE = '''"""What is allowed."""

__all__ = ["attend", "Mask"]
LIMIT = 3


def attend(query, key=None, *, dtype=np.float32):
    """Attend."""


def draw(weights): ...
def show(weights): ...


class Mask(Module):
    """Which cells are allowed."""

    table: np.ndarray = None

    @overload
    def rows(self, T: Literal[1]) -> np.ndarray: ...
    @overload
    def rows(self, T: int = ...) -> None: ...
    def rows(self, T=1): ...

    def allowed(self, T, S):
        """Say which.

        Raises ValueError for a negative
        length, TypeError for none.
        """
        cells = np.arange(T, axis=0)  # a comment
        return [np.ndarray(cell) for cell in cells]

    def hidden(self, T, S):
        """Say which not."""
'''
FIRST_OVERLOAD = """    @overload
    def rows(self, T: Literal[1]) -> torch.Tensor: ...
"""
DRAW, SHOW = "def draw(weights): ...\n", "def show(weights): ...\n"


@pytest.fixture
def root(tmp_path):
    """Three small backends that mirror each other."""
    modules = zip(BACKENDS, ("np", "torch", "jnp"), ("", "nn.", "nnx."), strict=True)
    for backend, module, layers in modules:
        folder = tmp_path / f"attn_{backend}"
        folder.mkdir()
        text = SOURCE.replace("np.", f"{module}.").replace("(Module)", f"({layers}Module)")
        if backend == "torch":
            text = text.replace("torch.ndarray", "torch.Tensor")
        (folder / "masks.py").write_text(text.replace("# a", f"# {backend}'s"), "utf-8")
    return tmp_path


def edit(root: Path, old: str, new: str, backend: str = "torch") -> None:
    file = root / f"attn_{backend}" / "masks.py"
    text = file.read_text("utf-8")
    assert old in text, f"nothing to break: {old!r}"
    file.write_text(text.replace(old, new, 1), "utf-8")


ALONE = "numpy there, torch missing, jax there"
EDITS = {
    "value": ("LIMIT = 3", "LIMIT = 4", "LIMIT: value: numpy 3, torch 4, jax 3"),
    "all": (', "Mask"]', "]", f"__all__: name Mask: {ALONE}"),
    "all_order": (
        '"attend", "Mask"',
        '"Mask", "attend"',
        "__all__: order of names: numpy attend before Mask, torch Mask before attend, "
        "jax attend before Mask",
    ),
    "function": (DRAW, "", f"definition draw: {ALONE}"),
    "function_order": (
        DRAW + SHOW,
        SHOW + DRAW,
        "order of definitions: numpy draw before show, torch show before draw, "
        "jax draw before show",
    ),
    "function_under_if": (
        DRAW,
        "if ...:\n    def draw(weights, shades): ...\n",
        "draw: parameter shades: numpy missing, torch there, jax missing",
    ),
    "method": (
        "def hidden(self, T, S)",
        "def others(self, T, S)",
        f"Mask: definition hidden: {ALONE}",
    ),
    "base": (
        "class Mask(nn.Module)",
        "class Mask(nn.Linear)",
        "Mask: bases: numpy Module, torch Linear, jax Module",
    ),
    "decorator": (
        "    def hidden",
        "    @torch.no_grad()\n    def hidden",
        "Mask.hidden: decorators: numpy none, torch no_grad(), jax none",
    ),
    "decorator_of_class": (
        "class Mask",
        "@dataclass(frozen=True)\nclass Mask",
        "Mask: decorators: numpy none, torch dataclass(frozen=True), jax none",
    ),
    "field": (
        "table: torch.Tensor",
        "table: int",
        "Mask.table: annotation: numpy Array, torch int, jax Array",
    ),
    "overload_gone": (
        FIRST_OVERLOAD,
        "",
        f"Mask: definition rows@overload2: {ALONE}",
    ),
    "overload_default": (
        "T: int = ...",
        "T: int",
        "Mask.rows@overload2: default of T: numpy ... (positional), torch none (positional), "
        "jax ... (positional)",
    ),
    "overload_annotation": (
        "T: Literal[1]",
        "T: Literal[2]",
        "Mask.rows@overload1: annotation of T: numpy Literal[1], torch Literal[2], jax Literal[1]",
    ),
    "overload_returns": (
        "-> torch.Tensor: ...",
        "-> None: ...",
        "Mask.rows@overload1: returns: numpy Array, torch None, jax Array",
    ),
    "property": (
        "    def hidden",
        "    @property\n    def hidden",
        "Mask.hidden: kind: numpy function, torch property function, jax function",
    ),
    "parameter": ("def draw(weights)", "def draw(w)", f"draw: parameter weights: {ALONE}"),
    "parameter_order": (
        "def allowed(self, T, S)",
        "def allowed(self, S, T)",
        "Mask.allowed: order of parameters: numpy T before S, torch S before T, jax T before S",
    ),
    "default": (
        "key=None",
        "key=0",
        "attend: default of key: numpy None (positional), torch 0 (positional), "
        "jax None (positional)",
    ),
    "keyword": (
        "*, dtype=torch.float32",
        "dtype=torch.float32",
        "attend: default of dtype: numpy float32 (keyword only), torch float32 (positional), "
        "jax float32 (keyword only)",
    ),
    "docstring": (
        "Attend.",
        "Pay attention.",
        "attend: docstring: numpy 'Attend.', torch 'Pay attention.', jax 'Attend.'",
    ),
    "docstring_gone": (
        '    """Which cells are allowed."""\n',
        "",
        "Mask: docstring: numpy 'Which cells are allowed.', torch missing, "
        "jax 'Which cells are allowed.'",
    ),
    "raises": (
        "length, TypeError for none.",
        "length.",
        "Mask.allowed: raises: "
        "numpy 'Raises ValueError for a negative length, TypeError for none.', "
        "torch 'Raises ValueError for a negative length.', "
        "jax 'Raises ValueError for a negative length, TypeError for none.'",
    ),
    "body": (
        "for cell in cells]",
        "for cell in cells[1:]]",
        "Mask.allowed: body: numpy return [Array(cell) for cell in cells], "
        "torch return [Array(cell) for cell in cells[1:]], "
        "jax return [Array(cell) for cell in cells]",
    ),
    "body_shorter": (
        "        return [torch.Tensor(cell) for cell in cells]\n",
        "",
        "Mask.allowed: body: numpy return [Array(cell) for cell in cells], "
        "torch nothing more, jax return [Array(cell) for cell in cells]",
    ),
}


def test_equal_folders_have_no_difference(root):
    assert complaints(root, {}) == []


@pytest.mark.parametrize("name", EDITS)
def test_difference_is_one_line_that_names_it(root, name):
    old, new, message = EDITS[name]
    edit(root, old, new)
    assert f"masks.py: {message}" in complaints(root, {})


def test_file_that_one_backend_has_alone_is_named(root):
    (root / "attn_jax" / "layers.py").touch()
    assert complaints(root, {}) == ["layers.py: file: numpy missing, torch missing, jax there"]


def test_exception_excuses_its_own_difference_alone(root):
    edit(root, "query", "query, device")
    edit(root, "weights", "weights, device", "jax")
    row = {"file": "*", "name": "*", "differs": ["parameter device"], "only": ["torch"]}
    left = "masks.py: draw: parameter device: numpy missing, torch missing, jax there"
    assert complaints(root, {"row": [row]}) == [left]


def test_exception_that_excuses_nothing_is_stale(root):
    row = {"file": "masks.py", "name": "draw", "differs": ["docstring"]}
    stale = "stale exception, remove it: masks.py: draw: docstring"
    assert complaints(root, {"row": [row]}) == [stale]


def test_each_name_of_a_row_must_excuse_something(root):
    old, new, _ = EDITS["body"]
    edit(root, old, new)
    row = {"file": "masks.py", "name": ["Mask.allowed", "draw"], "differs": ["body"]}
    assert complaints(root, {"row": [row]}) == ["stale exception, remove it: masks.py: draw: body"]


def test_overloads_of_a_word_are_one_name(root):
    edit(root, "def rows", "def lines")
    edit(root, "def rows", "def lines")
    edit(root, "def rows", "def lines")
    word = {"numpy": "rows", "torch": "lines", "jax": "rows"}
    assert complaints(root, {"word": [word]}) == []
    edit(root, "T: Literal[1]", "T: Literal[2]")
    (line,) = complaints(root, {"word": [word]})
    assert line.startswith("masks.py: Mask.rows/lines@overload1: annotation of T: numpy Literal[1]")


def test_the_place_of_an_array_is_set_aside(root):
    edit(root, "axis=0)", "axis=0, device=T.device).to(S.device)")
    edit(root, "axis=0)", "axis=0, xp=jnp)", "jax")
    assert complaints(root, {}) == []
    edit(root, ".to(S.device)", ".to(S.dtype)")
    (line,) = complaints(root, {})
    assert line.startswith("masks.py: Mask.allowed: body: numpy cells = arange(T, axis=0), torch")
    assert "torch cells = arange(T, axis=0).to(S.dtype)" in line


def test_rows_about_bodies_name_each_of_them():
    wide = [
        (row["file"], name)
        for row in EXCEPTIONS["row"]
        for name in ([row["name"]] if isinstance(row["name"], str) else row["name"])
        if "*" in row["file"] + name and {"*", "body"} & set(row["differs"])
    ]
    devices = [(file, "*") for file in ("rows.py", "sharded.py", "ring.py")]
    whole = [*devices, ("blocked.py", "_*"), ("arrays.py", "*")]
    assert wide == whole, "what is equal would not stay equal"


def test_words_are_set_aside_in_a_body(root):
    edit(root, "axis=0", "dim=0")
    assert len(complaints(root, {})) == 1
    word = {"numpy": "axis", "torch": "dim", "jax": "axis"}
    assert not [line for line in complaints(root, {"word": [word]}) if "body" in line]


def test_words_for_one_thing_are_one_name(root):
    edit(root, "query", "inputs")
    word = {"numpy": "query", "torch": "inputs", "jax": "query"}
    assert complaints(root, {"word": [word]}) == []
    edit(root, "query", "inputs", "jax")
    both = "numpy there, torch there, jax missing"
    assert f"masks.py: attend: parameter query/inputs: {both}" in complaints(root, {"word": [word]})
    assert "stale word, remove it: query/inputs of jax" in complaints(root, {"word": [word]})
