"""When the torch backend calls torch's own kernel, and what it hands it.

What is chosen for a device that is not here is asked by the device's name; a tensor on "meta"
stands for one that is elsewhere than on the CPU.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attn_torch import attention, blocked, everyday, fused, numerics
from attn_torch.call import Call
from attn_torch.fused import has_kernel, known_structure
from attn_torch.masks import allow, causal, padding, predicate, sliding_window

f16, b16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# A kernel must be linear in memory; where torch has none it computes the (T, S) matrix.
KERNELS = {
    "cpu": ("cpu", f32, 64, 64, True),
    "cpu_double": ("cpu", f64, 64, 64, True),
    "cpu_half": ("cpu", f16, 64, 64, True),  # handed over in float32
    "cpu_bfloat16": ("cpu", b16, 64, 64, True),
    "cpu_any_head_dim": ("cpu", f32, 7, 7, True),
    "cpu_large_head_dim": ("cpu", f32, 520, 520, True),
    "cpu_other_values": ("cpu", f32, 64, 32, False),  # every kernel wants one width
    "cuda": ("cuda", f32, 64, 64, True),
    "cuda_half": ("cuda", f16, 64, 64, True),
    "cuda_bfloat16": ("cuda", b16, 128, 128, True),
    "cuda_largest": ("cuda", f16, 256, 256, True),
    "cuda_too_large": ("cuda", f16, 264, 264, False),  # flash attention ends at 256
    "cuda_odd": ("cuda", f32, 7, 7, False),  # rows are read in eights
    "cuda_not_of_eight": ("cuda", f16, 68, 68, False),
    "cuda_double": ("cuda", f64, 64, 64, False),  # there is none in double precision
    "cuda_other_values": ("cuda", f16, 64, 72, False),
    "mps": ("mps", f32, 64, 64, False),  # not known to be linear, so not trusted
    "xpu": ("xpu", f32, 64, 64, False),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_chosen_where_it_is_linear_in_memory(name):
    *question, answer = KERNELS[name]
    assert has_kernel(*question) is answer


def _runs_linearly(device: str, dtype: torch.dtype, head_dim: int, value_dim: int) -> bool:
    """Whether torch finds a kernel when the one that holds the matrix is forbidden."""
    linear = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    tensors = [torch.ones(1, 2, 5, d, device=device, dtype=dtype) for d in (head_dim, value_dim)]
    try:
        with sdpa_kernel(linear):
            scaled_dot_product_attention(tensors[0], *tensors, is_causal=True)
    except RuntimeError:
        return False
    return True


HERE = {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}


@pytest.mark.parametrize("name", [name for name, row in KERNELS.items() if row[0] in HERE])
@pytest.mark.filterwarnings("ignore")  # torch tells why each kernel will not do
def test_torch_has_the_kernel_that_is_chosen(name):
    device, *question, answer = KERNELS[name]
    if answer:
        assert _runs_linearly(device, *question)
    elif device == "cpu":
        assert not _runs_linearly(device, *question), "torch has it by now"


SQUARE, OTHER = (3, 2, 7, 7), (3, 2, 5, 7)
EVERYTHING = torch.ones(1, 1, 7, 7, dtype=torch.bool)
STRUCTURES = {
    "no_mask": (None, SQUARE, 0, "all"),
    "no_mask_not_square": (None, OTHER, 0, "all"),
    "no_mask_with_offset": (None, OTHER, torch.tensor([1, 2, 3]), "all"),  # nothing looks at it
    "causal": (causal(), SQUARE, 0, "causal"),
    "causal_with_offset": (causal(), SQUARE, 2, ""),  # the kernel's diagonal starts at 0
    "causal_offset_tensor": (causal(), SQUARE, torch.zeros(3, dtype=torch.int64), ""),
    "causal_not_square": (causal(), OTHER, 0, ""),  # kernels differ on where the diagonal lies
    "causal_last": (causal(), OTHER, 2, ""),
    "causal_and_padding": (causal() & padding([7, 0, 4]), SQUARE, 0, ""),
    "causal_twice": (causal() & causal(), SQUARE, 0, ""),  # the tiles will tell
    "not_causal": (~causal(), SQUARE, 0, ""),
    "window": (sliding_window(7), SQUARE, 0, ""),
    "allow_everything": (allow(EVERYTHING), SQUARE, 0, ""),  # the tiles will tell
    "predicate": (predicate(lambda batch, head, query, key: key <= query), SQUARE, 0, ""),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_is_known_without_a_look_at_the_mask(name):
    mask, sizes, query_offset, structure = STRUCTURES[name]
    call = Call(sizes, mask, None, 1.0, None, None, "zero", query_offset, 0.0, None)
    assert known_structure(call) == structure


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """What the kernel is called with; it answers with zeros."""
    seen = []

    def kernel(query, key, value, **options):
        seen.append({"query": query, "key": key, "value": value, **options})
        return query.new_zeros((*query.shape[:3], value.shape[3]))

    monkeypatch.setattr(fused, "scaled_dot_product_attention", kernel)
    return seen


def inputs(dtype=f32, kv_heads: int = 4, head_dim: int = 8, device: str = "cpu"):
    shapes = [(3, heads, 7, head_dim) for heads in (4, kv_heads, kv_heads)]
    make = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=make).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "served"),
    [(f32, 8, False), (f16, 8, True), (b16, 8, True), (f16, 7, False), (f16, 264, False)],
)
def test_attention_asks_for_its_own_device_dtype_and_width(
    calls, monkeypatch, dtype, head_dim, served
):
    for module in (blocked, everyday):
        exact = lambda device, *rest: fused.has_exact_kernel("cuda", *rest)  # noqa: E731
        monkeypatch.setattr(module, "has_exact_kernel", exact)
    output = attention(*inputs(dtype, head_dim=head_dim), mask=causal())
    assert bool(calls) == served and output.any() != served


def test_attention_asks_for_the_values_width(calls):
    query, key, _ = inputs()
    attention(query, key, inputs(head_dim=16)[2])
    assert not calls


@pytest.mark.parametrize("options", [{"bias": torch.zeros(7, 7)}, {"softcap": 3.0}])
def test_kernel_knows_no_bias_and_no_softcap(calls, options):
    attention(*inputs(), **options)
    assert not calls


@pytest.mark.parametrize("scale", [0, -0.5])
def test_causal_kernel_gets_a_positive_scale(calls, scale):
    query, key, value = inputs()
    attention(query, key, value, mask=causal(), scale=scale)
    (call,) = calls
    assert call["is_causal"] and call["scale"] == 1  # else it gives NaN
    assert torch.equal(call["query"], query * scale)


@pytest.mark.parametrize(("mask", "scale"), [(None, -0.5), (None, 0), (causal(), 0.25)])
def test_other_scales_are_the_kernels_own(calls, mask, scale):
    query, key, value = inputs()
    attention(query, key, value, mask=mask, scale=scale)
    (call,) = calls
    assert call["is_causal"] == (mask is not None) and call["scale"] == scale
    assert torch.equal(call["query"], query)


@pytest.mark.parametrize("dtype", [f16, b16, f32, f64])
def test_kernel_on_a_cpu_computes_in_float32_at_least(calls, dtype):
    output = attention(*inputs(dtype))
    (call,) = calls
    assert call["key"].dtype == (f64 if dtype == f64 else f32) and output.dtype == dtype


def test_kernel_gets_rows_that_lie_side_by_side(calls):
    attention(*(x.mT.contiguous().mT for x in inputs()))
    (call,) = calls
    assert [call[name].stride(3) for name in ("query", "key", "value")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("device", "dtype", "heads"),
    [("cpu", f32, 2), ("cpu", f16, 2), ("meta", f16, 2), ("meta", f32, 4)],
)
def test_grouped_heads_are_repeated_where_the_kernel_knows_none(calls, device, dtype, heads):
    fused.fused(*inputs(dtype, kv_heads=2, device=device), 0.5, causal=False)
    (call,) = calls
    assert call["key"].shape[1] == heads and call["enable_gqa"] == (heads == 2)


@pytest.mark.parametrize(("device", "heads"), [("cpu", 2), ("meta", 4)])
def test_grouped_heads_are_repeated_beside_a_dense_mask(calls, device, heads):
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool, device=device)
    fused.call_kernel(*inputs(f16, kv_heads=2, device=device), 0.5, False, mask)
    (call,) = calls
    assert call["key"].shape[1] == heads and call["attn_mask"] is mask


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_a_cpu_is_asked_whether_keys_are_finite(calls, monkeypatch, device):
    asked = []
    monkeypatch.setattr(numerics, "_norm", lambda array: asked.append(array) or torch.ones(()))
    monkeypatch.setattr(numerics, "is_concrete", lambda array: True)
    fused.fused(*inputs(device=device), 0.5, causal=False)  # elsewhere a look would wait
    assert bool(asked) == (device == "cpu")
