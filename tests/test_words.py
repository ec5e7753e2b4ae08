"""The words: the backends use the field's terms, and one word for one thing."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKENDS = ("attn_numpy", "attn_torch", "attn_jax")

# Retired names of variables, functions and classes, and what is written instead.
NAMES = {
    r"_?(seen|unseen|visible)": "allowed or hidden",
    r"\w+_(seen|unseen)|(seen|unseen)_\w+": "allowed or hidden",
    r"is_known": "is_concrete",
    r"_?wide": "upcast",
    r"_?(bad|good)|\w+_bad_keys": "nonfinite, split_nonfinite, mark_nonfinite",
    r"_?level|_fill": "empty_row_value, or running_max in a loop",
    r"_fold": "online_softmax_step",
    r"_pull": "backward_tile",
    r"of_(query|key|value|bias|scores)": "d_query, d_key and so on",
    r"exactly": "no_autocast",
    r"Walk": "TileLoop",
    r"grains?": "step",
    r"tame": "surely_finite",
    r"span": "key_range",
    r"desk": "workspace",
    r"opened": "closure_convert",
    r"_lose": "nan_if_overflowed",
    r"ask": "evaluate",
    r"found|own|given|tmp": "what the thing is",
}
# The same in docstrings, comments and messages.
PROSE = {
    r"\b(un)?seen\b|\bvisible\b|\bmay (not )?see\b": "allowed or hidden",
    r"\bsees?\b": "allowed or hidden",
    r"\bsee nothing\b|\bempty rows?\b": "fully masked row (the argument is `empty_rows`)",
    r"\bthe documents\b|\bdocuments'": "torch's convention, or the guide's title",
    r"\b[Hh]old\b[^.]* against\b": "check",
    r'"look"': '"partial"',
}
# Drawings, what `explain` says and examples are for learners: a query may see a key there.
LEARNERS = {"draw.py", "masks.py", "attention.py"}
SEES = r"\bsees?\b"
TEXT = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def retired(path: Path) -> Iterator[str]:
    """Yield each retired word of a file: the place, the word, what is written instead."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            words = _retired(path.name, token)
            yield from (f"{path.name}:{token.start[0]}: {old!r}: write {new}" for old, new in words)


def _retired(file: str, token: tokenize.TokenInfo) -> Iterator[tuple[str, str]]:
    if token.type == tokenize.NAME:
        yield from (
            (token.string, NAMES[name]) for name in NAMES if re.fullmatch(name, token.string)
        )
    elif token.type in TEXT:
        text = " ".join(token.string.split())
        for pattern, new in PROSE.items():
            if not (pattern == SEES and file in LEARNERS):
                yield from ((match[0], new) for match in re.finditer(pattern, text))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_retired_word_stands_in_a_backend(backend):
    paths = sorted((ROOT / backend).rglob("*.py"))
    assert len(paths) > 10
    lines = [line for path in paths for line in retired(path)]
    assert not lines, "\n".join([f"retired words in {backend}:", *lines])


SOURCES = {
    "name": ("seen = 1\n", "'seen': write allowed or hidden"),
    "part": ("key_unseen = 1\n", "'key_unseen': write allowed or hidden"),
    "method": ("mask.ask(at)\n", "'ask': write evaluate"),
    "comment": ("x = 1  # the keys seen\n", "'seen': write allowed or hidden"),
    "docstring": ('"""What may\nsee it."""\n', "'may see': write allowed or hidden"),
    "message": ('"True is visible"\n', "'visible': write allowed or hidden"),
    "f_string": ('f"{x} is visible"\n', "'visible': write allowed or hidden"),
    "learners": ("# a query sees a key\n", "'sees': write allowed or hidden"),
    "check": ('"""Hold a mask\nagainst a call."""\n', "'Hold a mask against': write check"),
    "row": ("# an empty row\n", "'empty row': write fully masked row"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_retired_word_is_named_with_what_to_write(tmp_path, name):
    source, message = SOURCES[name]
    path = tmp_path / "tiles.py"
    path.write_text(source, "utf-8")
    assert any(message in line and line.startswith("tiles.py:1: ") for line in retired(path))


def test_the_field_s_words_and_plain_prose_pass(tmp_path):
    path = tmp_path / "draw.py"
    text = (
        'allowed = empty_rows = given_back = 1  # a query sees what we found, of its own\n"evil"\n'
    )
    path.write_text(text, "utf-8")
    assert list(retired(path)) == []
