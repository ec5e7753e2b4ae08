"""The suite's own safetensors files, held against the safetensors package."""

import numpy as np
import pytest

from conformance.cases.weight_layouts import nested, to_nnx, to_torch
from conformance.vectors import tensors

ARRAYS = {
    "layers.0.weight": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "bias": np.array([1.5, -2.0, np.nan], np.float16),
    "empty": np.zeros((0, 7)),
}


def same(got: dict, wanted: dict) -> None:
    assert sorted(got) == sorted(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array, name)


def test_package_reads_what_the_suite_writes(tmp_path):
    package = pytest.importorskip("safetensors")
    path = tmp_path / "ours.safetensors"
    tensors.write(path, ARRAYS, {"class": "Transformer"})
    with package.safe_open(path, "numpy") as file:
        assert file.metadata() == {"class": "Transformer"}
        same({name: file.get_tensor(name) for name in file.keys()}, ARRAYS)  # noqa: SIM118


def test_suite_reads_what_the_package_writes(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    save_file(ARRAYS, tmp_path / "theirs.safetensors", {"format": "np"})
    arrays, metadata = tensors.read(tmp_path / "theirs.safetensors")
    assert metadata == {"format": "np"}
    same(arrays, ARRAYS)


def test_suite_reads_its_own_bfloat16(tmp_path):
    array = {"x": np.array([[0.5, -3.0]]).astype(tensors.dtype("bfloat16"))}
    tensors.write(tmp_path / "own.safetensors", array)
    same(tensors.read(tmp_path / "own.safetensors")[0], array)


def projections(kv: int = 4) -> dict[str, np.ndarray]:
    names = {"q_proj": 4, "k_proj": kv, "v_proj": kv, "out_proj": 4}
    rows = {name: 10 * i + np.arange(out) for i, (name, out) in enumerate(names.items())}
    found = {f"{name}.weight": row[:, None] + np.zeros(4) for name, row in rows.items()}
    return found | {f"{name}.bias": row for name, row in rows.items()}


def test_torchs_layout_packs_query_key_value_in_this_order():
    found = to_torch(projections())
    assert sorted(found) == ["in_proj_bias", "in_proj_weight", "out_proj.bias", "out_proj.weight"]
    assert found["in_proj_bias"].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert found["in_proj_weight"][:, 2].tolist() == found["in_proj_bias"].tolist()


def test_flaxs_layout_has_heads_in_the_middle():
    found = to_nnx(projections(kv=2), heads=2)
    assert found["query.kernel"].shape == (4, 2, 2)
    assert found["key.kernel"].shape == (4, 1, 2)
    assert found["query.kernel"][3].tolist() == [[0, 1], [2, 3]]
    assert found["out.kernel"].shape == (2, 2, 4)
    assert found["out.kernel"][1, 0].tolist() == [30, 31, 32, 33]
    assert nested(found)["value"]["bias"].tolist() == [[20, 21]]
