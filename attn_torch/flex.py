"""Attention on a GPU: a kernel wherever one can be had, the loop over blocks where none can.

FlexAttention compiles a mask's rule into torch's own kernel and skips the tiles that are hidden. It
holds nothing of the size (T, S): the rule is asked about whole tiles first, as on a CPU, and inside
the kernel about the cells of those that are partial. What `fused.ways_on_gpu` names is tried in
turn, so that whatever does not compile is answered another way.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import count
from types import FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .arrays import is_array
from .blocked import attention_blocked, empty_row_value
from .call import Call
from .fused import fused, has_exact_kernel, known_structure, ways_on_gpu
from .masks import Mask
from .numerics import is_bounded, split_nonfinite, upcast
from .tiles import Cells, Tiles
from .traced import allowed_cells, attend_traced

TILE = 128  # of FlexAttention's own, which its kernels' blocks divide
COMPILER = "inductor"
_NUMBERS = count()
_KEPT: WeakKeyDictionary[Mask, tuple[Any, BlockMask]] = WeakKeyDictionary()


def attention_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, call: Call, bounded: bool = False
) -> Tensor:
    """Attend as `attention_blocked` does, by the first of the ways on a GPU that answers."""
    widths, derived = (query.shape[3], value.shape[3]), torch.is_grad_enabled()
    for way in ways_on_gpu(query.dtype, *widths, call, derived):
        if way == "dense":
            known = call.bias is None and known_structure(call)
            allowed = None if known else allowed_cells(call, query.device)
            return attend_traced(query, key, value, call, allowed)
        if way == "flex" and (output := attend_flex(query, key, value, call, bounded)) is not None:
            return output
    return attention_blocked(query, key, value, call, bounded)


def launch_kernel(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor | None:
    """Call the kernel where it alone answers, as if all were finite; None for other calls."""
    plain = call.bias is None and call.softcap is None and call.sinks is None
    widths = query.shape[3], value.shape[3]
    known = known_structure(call) if plain else ""
    if not known or not has_exact_kernel("cuda", query.dtype, *widths):
        return None
    return fused(query, key, value, call.scale, known == "causal", finite=True)


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, call: Call, bounded: bool = False
) -> Tensor | None:
    """Attend by FlexAttention; None where it does not compile, or numbers are too large for it."""
    nonfinite = None
    if not (bounded or is_bounded(query, key, value, call.scale)):
        key, value, nonfinite = split_nonfinite(key, value)
        if not is_bounded(query, key, value, call.scale):
            return None
    blocks = block_mask(call, query.device)
    output = _run(query, key, value, call, blocks)
    if output is None or (nonfinite is None and call.empty_rows == "zero"):
        return output  # it gives 0 for a fully masked row
    return _mend(output, value, nonfinite, call, blocks)


def _mend(
    output: Tensor, value: Tensor, nonfinite: Tensor | None, call: Call, blocks: BlockMask | None
) -> Tensor | None:
    """Put in what fully masked rows become, and NaN where a key that is not finite is allowed.

    The mean over the allowed keys of two columns tells: 1 everywhere, and 1 where not finite.
    """
    flags = torch.zeros(*value.shape[:3], 16, device=value.device)  # the least width of a kernel
    flags[..., 0] = 1
    if nonfinite is not None:
        flags[..., 1] = nonfinite
    query = flags.new_zeros(*call.sizes[:3], 16)
    means = _run(query, torch.zeros_like(flags), flags, call._replace(softcap=None), blocks)
    if means is None:
        return None
    output = output.where(means[..., 1:2] == 0, torch.nan)
    row = empty_row_value(call, upcast(value), nonfinite).to(output.dtype)
    return output.where(means[..., :1] > 0, row)


class ScalarCell:
    """One cell of a call, as FlexAttention names it: `Cells` in scalars.

    A table whose first dims are 1 serves every sample and head.
    """

    def __init__(self, batch: Tensor, head: Tensor, row: Tensor, column: Tensor, offset: Tensor):
        self.batch, self.head, self.key, self._row = batch, head, column, row
        self.query = row + self.samples(offset)

    def samples(self, table: Tensor) -> Tensor:
        """Look up by sample."""
        return table[self.batch if len(table) > 1 else 0]

    def rows(self, table: Tensor) -> Tensor:
        """Look up by sample and row."""
        return table[self.batch if len(table) > 1 else 0, self._row]

    def columns(self, table: Tensor) -> Tensor:
        """Look up by sample and column."""
        return table[self.batch if len(table) > 1 else 0, self.key]

    def positions(self, table: Tensor) -> Tensor:
        """Look up by the query's position; one outside the table gets what stands at its edge."""
        if not table.shape[1]:
            return torch.zeros_like(self.query)
        inside = self.query.clamp(0, table.shape[1] - 1)
        return table[self.batch if len(table) > 1 else 0, inside]

    def cells(self, table: Tensor) -> Tensor:
        """Look up cell by cell."""
        batch = self.batch if len(table) > 1 else 0
        return table[batch, self.head if table.shape[1] > 1 else 0, self._row, self.key]

    def call(self, function: Callable) -> Tensor:
        """Ask a predicate."""
        allowed = function(self.batch, self.head, self.query, self.key)
        if not is_array(allowed) or allowed.dtype != torch.bool:
            raise TypeError("predicate must return a bool array")  # said in full by another way
        return allowed


def block_mask(call: Call, device: torch.device) -> BlockMask | None:
    """Return the call's mask in FlexAttention's form, kept with the mask while that cannot change.

    A mask's integers are copies of its own. Its booleans may be the caller's, who may write to
    them, and a predicate may look at anything: these are asked anew.
    """
    mask = call.mask
    if mask is None:
        return None
    fixed = not any(table.dtype == torch.bool for *_, table in mask.tables())
    fixed = fixed and not any(leaf.name == "predicate" for leaf in mask.leaves())
    if not fixed or is_array(call.query_offset):
        return _block_mask(mask, call, device)
    asked = (call.sizes, call.query_offset, device)
    if _KEPT.get(mask, (None,))[0] != asked:
        _KEPT[mask] = asked, _block_mask(mask, call, device)
    return _KEPT[mask][1]


@torch.inference_mode(False)  # a gradient may want them later
def _block_mask(mask: Mask, call: Call, device: torch.device) -> BlockMask:
    cells = Cells(call.sizes, call.query_offset, device=device)
    verdict = mask.evaluate(Tiles(cells, TILE, TILE))
    needed, full = torch.broadcast_tensors(verdict.any, verdict.all)
    tiles = [-(-size // TILE) for size in call.sizes[2:]]
    needed, full = (flags.expand(*flags.shape[:2], *tiles).clone() for flags in (needed, full))
    for dim, size in ((2, call.sizes[2]), (3, call.sizes[3])):
        if size % TILE:  # the last tile is not whole, so it is partial
            full.narrow(dim, -1, 1).fill_(False)
    moved, offset = _moved(mask, device), call.query_offset
    offset = offset if is_array(offset) else torch.tensor([offset])
    offset = offset.to(device, torch.int32)

    def allowed(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return moved.evaluate(cast(Cells, ScalarCell(batch, head, row, column, offset)))

    listed = (*_listed(needed & ~full), *_listed(full))
    return BlockMask.from_kv_blocks(
        *listed, BLOCK_SIZE=TILE, mask_mod=allowed, seq_lengths=call.sizes[2:]
    )


def _listed(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tiles of a row are flagged, and their columns before all others."""
    columns = flags.int().argsort(dim=-1, descending=True, stable=True)
    return flags.sum(-1, dtype=torch.int32), columns.int()


def _moved(mask: Mask, device: torch.device) -> Mask:
    """Return a copy of a mask with its tables on a device."""
    parts = tuple(_moved(part, device) for part in mask.parts)
    return replace(mask, parts=parts, arrays=tuple(table.to(device) for table in mask.arrays))


class _Program:
    """FlexAttention compiled for one structure of a mask, on its first call."""

    def __init__(self, scale: float, softcap: float | None, name: str):
        def attend(query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask | None) -> Any:
            if not torch.compiler.is_dynamo_compiling():
                raise RuntimeError("compiling is switched off")  # else it would hold all scores
            grouped = query.shape[1] != key.shape[1]
            return flex_attention(query, key, value, capped, blocks, scale, grouped)

        def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score if softcap is None else softcap * torch.tanh(score / softcap)

        # Torch counts compilations, and learns which sizes vary, by a code's name and identity.
        code = attend.__code__.replace(co_name=name)
        self._function: Any = FunctionType(code, globals(), name, closure=attend.__closure__)
        self._compiled: Callable | None = None
        self._fails = False

    def __call__(self, *args: Any) -> Tensor | None:
        """Return the output, and None once it did not compile: another way will answer."""
        if self._fails:
            return None
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self._function, backend=COMPILER, fullgraph=True)
            return self._compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a compiler that is absent, or what it does not know
            self._fails = True
            return None


@lru_cache(maxsize=64)
def _program(scale: float, softcap: float | None, *facts: Any) -> _Program:
    return _Program(scale, softcap, f"attend_{next(_NUMBERS)}")


def _run(
    query: Tensor, key: Tensor, value: Tensor, call: Call, blocks: BlockMask | None
) -> Tensor | None:
    structure = None if call.mask is None else _structure(call.mask)
    shapes = query.shape[1], query.shape[3], key.shape[1], value.shape[3]
    facts = query.dtype, query.device.type, shapes, torch.is_grad_enabled()
    program = _program(call.scale, call.softcap, structure, *facts)
    return program(*_Once.apply(query, key, value), blocks)


class _Once(torch.autograd.Function):
    """The identity, for what is differentiable once: no gradient passes that has one in turn.

    `gradients.py` gives that one. A compiled program would add 0 to it, and refuse to derive that.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None,) * len(grads) if torch.is_grad_enabled() else grads


def _structure(mask: Mask) -> Any:
    """Return what a mask's rule is made of, beside the values in its tables."""
    if mask.name == "predicate":
        return getattr(mask.settings[0], "__code__", mask.settings)
    return mask.name, mask.settings, mask.rule, tuple(map(_structure, mask.parts))
