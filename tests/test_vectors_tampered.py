"""Files of vectors that were tampered with: each is refused, or found by the check, and named."""

import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator, SchemaError

from conformance.vectors import HERE, VectorsError, check_files, load, tensors
from conformance.vectors.vector import Part
from tools.vectors import freeze
from tools.vectors.cases import all_cases

CASES = {case.id: case for case in all_cases()}
VECTORS = load()
ONE = "ATT-1.causal"
SINK, PIECES, TURN, NORM = (
    "ATT-15.gradients", "ATT-16.part", "MHA-10.frequencies", "MHA-10.norm_then_rotary"
)  # fmt: skip
FEW = (ONE, SINK, PIECES, "CAUSE-2.no_offset", "CAUSE-3.last", "CLEAN-6.value", TURN, NORM,
       "MASK-14.part", "MASK-1.ragged")  # fmt: skip


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Write a few of the vectors."""
    folder = tmp_path_factory.mktemp("few")
    freeze.write(folder, [CASES[id] for id in FEW])
    return folder


@pytest.fixture
def folder(tmp_path, few) -> Path:
    """Return a copy of these files, to be spoilt."""
    return shutil.copytree(few, tmp_path, dirs_exist_ok=True)


def check(folder: Path, *ids: str) -> str:
    """Return what the check of some vectors says."""
    return "\n".join(freeze.check(folder, [CASES[id] for id in ids or (ONE,)]))


def edit(folder: Path, change) -> None:
    """Change the manifest: the function gets it, and the entries by their ids."""
    found = json.loads((folder / check_files.MANIFEST).read_text("utf-8"))
    change(found, {entry["id"]: entry for entry in found["vectors"]})
    (folder / check_files.MANIFEST).write_text(json.dumps(found), "utf-8")


def spoil(folder: Path, name: str, change) -> None:
    """Change a tensor of the file, and let the manifest have the new digest."""
    arrays, _ = tensors.read(folder / check_files.TENSORS)
    arrays[name] = arrays[name].copy()
    change(arrays[name])
    tensors.write(folder / check_files.TENSORS, arrays)
    digest = sha256((folder / check_files.TENSORS).read_bytes()).hexdigest()
    edit(folder, lambda found, _: found["tensors"].update(sha256=digest))


def test_changed_byte_is_refused(folder):
    content = bytearray((folder / check_files.TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / check_files.TENSORS).write_bytes(content)
    with pytest.raises(
        VectorsError, match=r"the manifest's SHA-256 is [0-9a-f]{64}, the file's is"
    ):
        load(folder)
    assert "the manifest's SHA-256 is" in check(folder)


def test_changed_number_is_found_and_named_though_the_digest_fits(folder):
    def change(array):
        array[1, 0, 3, 2] = np.nextafter(array[1, 0, 3, 2], 9)

    spoil(folder, f"{ONE}/expect.0.expected", change)
    load(folder)
    kept, right = (np.array(x.expected[1, 0, 3, 2]) for x in both(folder))
    line = rf"{ONE}, output at \(1, 0, 3, 2\): stored is {kept}, the loop oracle says -?[\d.]+, "
    assert re.search(line + rf"exact arithmetic says {right}$", check(folder), re.MULTILINE)


def both(folder: Path) -> list[Part]:
    return [load(folder)[ONE].expect[0], VECTORS[ONE].expect[0]]


@pytest.mark.parametrize("size", [3, 100, 5000])
def test_file_cut_short_is_refused(folder, size):
    content = (folder / check_files.TENSORS).read_bytes()
    (folder / check_files.TENSORS).write_bytes(content[:size])
    with pytest.raises(VectorsError, match="the manifest's SHA-256 is"):
        load(folder)
    assert check(folder).endswith("cannot be read")


TAMPERED = {
    "query": (
        "query",
        (0, 1, 2, 3),
        0.5,
        r"inputs query at \(0, 1, 2, 3\): stored is 0\.5, the case",
    ),
    "seen": ("seen", (0, 0, 0, 6), True, r"mask seen at \(0, 0, 0, 6\): stored is True, the case"),
    "weights": (
        "expect.1.expected",
        (0, 0, 0, 0),
        0.5,
        r"weights at \(0, 0, 0, 0\): stored is 0\.5",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampered_tensor_is_found(folder, what):
    name, index, number, text = TAMPERED[what]
    spoil(folder, f"{ONE}/{name}", lambda array: array.__setitem__(index, number))
    assert re.search(f"{ONE}, {text}", check(folder)), check(folder)


OTHERS = {
    "sinks": (SINK, "sinks", 2, 0.5, r"inputs sinks at \(2,\): stored is 0\.5"),
    "grad_sinks": (SINK, "expect.5.expected", 2, 0.5, r"grad_sinks at \(2,\): stored is 0\.5"),
    "lse": (PIECES, "expect.2.expected", (0, 0, 0), 0.0, r"lse at \(0, 0, 0\): stored is 0\.0"),
    "positions": (TURN, "positions", (1, 0), 8, r"inputs positions at \(1, 0\): stored is 8"),
    "turned": (TURN, "expect.0.expected", (0, 0, 0, 0), 9.0, r"turned_query at .*: stored is 9"),
    "norm": (NORM, "process_heads.k_norm.weight", 0, 9.0, r"parameters process_heads\.k_norm"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_tampered_tensor_of_another_call_is_found(folder, what):
    id, name, index, number, text = OTHERS[what]
    spoil(folder, f"{id}/{name}", lambda array: array.__setitem__(index, number))
    assert re.search(f"{id}, {text}", check(folder, id)), check(folder, id)


def drop_last(found, by_id):
    del found["vectors"][-1]


def test_schema_is_one():
    schema = json.loads((HERE / check_files.SCHEMA).read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    with pytest.raises(SchemaError):
        Draft202012Validator.check_schema(schema | {"type": "dict"})


UNFIT = {
    "kind": (lambda m, v: v[ONE]["expect"][0].update(kind="almost"), "almost"),
    "no_expectation": (lambda m, v: v[ONE].update(expect=[]), "non-empty"),
    "extra": (lambda m, v: v[ONE].update(note="x"), "note"),
    "no_scale": (lambda m, v: v[ONE].pop("scale"), "'scale' is a required property"),
    "negative": (lambda m, v: v[ONE]["expect"][0]["allowed"].update(float32=-1), "-1"),
    "no_expected": (lambda m, v: v[ONE]["expect"][0].pop("expected"), "'expected' is a required"),
    "structure": (lambda m, v: v[ONE]["mask"]["structure"].update(kind="diagonal"), "diagonal"),
    "no_pieces": (lambda m, v: v[PIECES]["settings"].pop("pieces"), "'pieces' is a required"),
    "no_keys": (lambda m, v: v[PIECES]["settings"].update(pieces=[]), "non-empty"),
    "no_positions": (lambda m, v: v[TURN]["inputs"].pop("positions"), "'positions' is a required"),
    "process": (lambda m, v: v[NORM]["settings"]["process_heads"].update(kind="x"), "kind"),
    "no_whole": (lambda m, v: v["MASK-14.part"]["mask"]["structure"].pop("parts"),
                 "'parts' is a required"),
    "level": (lambda m, v: v[ONE].update(level="SHOULD"), "ATT-1 is a MUST clause: got SHOULD"),
    "clause": (lambda m, v: v[ONE].update(clause="ATT-2"), "first part of its id: got ATT-2"),
    "twice": (lambda m, v: m["vectors"].append(v[ONE]), f"never again: got {ONE}"),
    "retired": (lambda m, v: m.update(retired={ONE: "wrong"}), f"never again: got {ONE}"),
    "no_tensor": (lambda m, v: v[ONE]["inputs"].update(key=f"{ONE}/other"), "is not in the file"),
    "unused": (drop_last, "the tensor MASK-1.ragged/tokens belongs to no vector"),
    "answered": (lambda m, v: v["CAUSE-2.no_offset"]["expect"][0].update(answered="ATT-9.x"),
                 "CAUSE-2.no_offset: ATT-9.x must be a vector that is answered"),
    "differs": (lambda m, v: v["CAUSE-2.no_offset"].update(scale=2.0),
                r"from CAUSE-3.last in \['query_offset', 'scale'\], not in \['query_offset'\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_tampered_manifest_is_refused(folder, name):
    change, text = UNFIT[name]
    edit(folder, change)
    with pytest.raises(VectorsError, match=text):
        load(folder)
    assert check(folder), "the check does not mind"


ALTERED = {
    "scale": (lambda v: v.update(scale=0.5), f"{ONE}, scale: stored is 0.5, the case says None"),
    "shows": (lambda v: v.update(shows="x"), f"{ONE}, shows: stored is x, the case says"),
    "dtypes": (lambda v: v.update(dtypes=["float32"]), f"{ONE}, dtypes: stored is"),
    "allowed": (lambda v: v["expect"][0]["allowed"].update(float16=1.0),
                rf"{ONE}, output, allowed in float16: stored is 1, derived is 0\.00"),
    "telling": (lambda v: v["telling"].update(unmasked=9e9), "telling unmasked: stored is 9e"),
    "exempt": (lambda v: v["exempt"].update(hidden="no"), "is exempt from hidden, and has it"),
}  # fmt: skip


SETTINGS = {
    "pieces": (PIECES, lambda v: v["settings"].update(pieces=[[6, 4, 1]])),
    "frequencies": (TURN, lambda v: v["settings"]["frequencies"].reverse()),
    "interleaved": (TURN, lambda v: v["settings"].update(interleaved=True)),
    "eps": (NORM, lambda v: v["settings"]["process_heads"].update(eps=0.25)),
    "then": (NORM, lambda v: v["settings"]["process_heads"]["then"].update(base=9.0)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_altered_settings_are_found(folder, name):
    id, change = SETTINGS[name]
    edit(folder, lambda found, by_id: change(by_id[id]))
    assert f"{id}, settings: stored is" in check(folder, id)


@pytest.mark.parametrize("name", ALTERED)
def test_altered_manifest_is_found(folder, name):
    change, text = ALTERED[name]
    edit(folder, lambda found, by_id: change(by_id[ONE]))
    assert re.search(text, check(folder)), check(folder)


def test_case_that_is_not_stored_and_vector_of_no_case_are_found(folder, monkeypatch):
    assert "ATT-1.new is not stored" in "\n".join(
        freeze.check(folder, [replace(CASES[ONE], id="ATT-1.new")])
    )
    monkeypatch.setattr(freeze, "all_cases", lambda: [CASES[ONE]])
    assert "MASK-1.ragged is stored, and no case makes it" in "\n".join(freeze.check(folder))
