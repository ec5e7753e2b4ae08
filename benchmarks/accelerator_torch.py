"""Torch's calls on a device: ours, its fused kernels one by one, and compiled FlexAttention."""

from collections.abc import Callable
from functools import cache, lru_cache, partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import attn_torch

from . import steps
from .accelerator import AcceleratorRow, TimedCall, allowed, lengths, mask
from .inputs import WINDOW, documents
from .truth import given

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
DEVICE = ["cpu"]  # where everything is measured


def start(device: str) -> None:
    """Take a device, and full float32 for matrix products."""
    DEVICE[0] = device
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def makers(row: AcceleratorRow) -> dict[str, Callable[[], TimedCall]]:
    """Return what makes our call and its rivals' for one row."""
    if row.work == "decode":
        attn, before, last = _decoding(row)
        own = lambda: _step(partial(steps.torch_step, attn, before, last))  # noqa: E731
        hand = lambda: _step(partial(steps.by_hand, attn, before, last))  # noqa: E731
        return {"ours": own, "by hand": hand}
    ours = lambda: _call(partial(attn_torch.attention, mask=_mask(row)), row)  # noqa: E731
    if row.compiled:
        return {"ours": ours, "flex": lambda: _call(_flex(row), row)}
    fused = {name: partial(_fused, row, kernel) for name, kernel in KERNELS.items()}
    return {"ours": ours} | fused


def _mask(row: AcceleratorRow):
    return mask(attn_torch, row.work, row.shape)


@lru_cache(maxsize=1)
def _inputs(shape, dtype: str, device: str) -> list:
    own = getattr(torch, dtype)
    return [torch.from_numpy(array).to(device, own) for array in given(shape)]


def _call(attend: Callable, row: AcceleratorRow) -> TimedCall:
    *given, grad = _inputs(row.shape, row.dtype, DEVICE[0])
    if row.backward:
        leaves = [array.detach().requires_grad_() for array in given]
        run = lambda: torch.autograd.grad(attend(*leaves), leaves, grad)  # noqa: E731
    else:
        run = torch.no_grad()(lambda: attend(*given))
    return TimedCall(run, _head, partial(_memory, run))


def _head(result) -> list:
    parts = result if isinstance(result, tuple) else (result,)
    return [part[-1, -1].float().cpu().numpy() for part in parts]


def _memory(run: Callable) -> float | None:
    """Return the most memory that a call takes, its results included."""
    if DEVICE[0] != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _fused(row: AcceleratorRow, kernel: SDPBackend) -> TimedCall:
    options: dict = {"is_causal": True} if row.work == "causal" else {}
    if row.work not in ("causal", "none"):
        dense = torch.from_numpy(allowed(row.work, row.shape)).to(DEVICE[0])
        batch, _, length, _ = row.shape
        size = batch if row.work == "padded" else 1
        options = {"attn_mask": dense.expand(size, 1, length, length)}

    def attend(query, key, value):
        with sdpa_kernel(kernel):
            return scaled_dot_product_attention(query, key, value, **options)

    return _call(attend, row)


@cache
def _compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(row: AcceleratorRow) -> Callable:
    """Return compiled FlexAttention, its mask of blocks made before."""
    from torch.nn.attention.flex_attention import create_block_mask

    torch.compiler.reset()  # so that no row counts towards the next one's recompilations
    _compiled.cache_clear()
    batch, _, length, _ = row.shape
    ids = torch.tensor(documents(length)[0], device=DEVICE[0])
    until = torch.tensor(lengths(row.shape), device=DEVICE[0])
    rules = {
        "causal": lambda b, h, q, k: k <= q,
        "window": lambda b, h, q, k: (k <= q) & (q - k <= WINDOW),
        "packed": lambda b, h, q, k: (k <= q) & (ids[q] == ids[k]),
        "padded": lambda b, h, q, k: k < until[b],
    }
    blocks = None
    if row.work in rules:
        size = batch if row.work == "padded" else None
        sizes = (size, None, length, length)
        blocks = create_block_mask(rules[row.work], *sizes, device=DEVICE[0])
    return partial(_compiled(), block_mask=blocks)


def _decoding(row: AcceleratorRow) -> tuple:
    batch, heads, context, width = row.shape
    options = {"device": DEVICE[0], "dtype": getattr(torch, row.dtype)}
    torch.manual_seed(0)
    attn = attn_torch.MultiHeadAttention(heads * width, heads, **options).eval()
    tokens = torch.from_numpy(steps.tokens(batch, context, heads * width)).to(**options)
    return attn, tokens[:, :-1], tokens[:, -1:]


def _step(make: Callable) -> TimedCall:
    run = make()
    return TimedCall(
        run, lambda result: [result[:, 0].float().cpu().numpy()], partial(_memory, run)
    )
