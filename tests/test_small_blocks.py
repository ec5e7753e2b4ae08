"""Small blocks: that small calls reach every branch of large ones in them, in each backend.

What the suite asks about in small blocks is asked here too, and what the backends do is noted.
"""

from contextlib import ExitStack
from importlib import import_module
from unittest import mock

import numpy as np
import pytest

from conformance import subjects
from conformance.cases.attention import LENGTHS
from conformance.cases.cuts import CUT, HALVES
from conformance.cases.decoding import STREAMS
from conformance.cases.sizes import TRUE_SIZES
from conformance.mask_spec import causal, padding
from conformance.oracle import reference
from conformance.subjects.protocol import SMALL_BLOCKS


class Notes(set):
    """What was seen; `spy` wraps a function of a module and lets `look` note what it was given."""

    def __init__(self, stack: ExitStack):
        super().__init__()
        self.stack = stack

    def spy(self, module, name: str, look) -> None:
        real = getattr(module, name)

        def call(*args, **options):
            found = real(*args, **options)
            self.update(word for word, is_so in look(found, *args).items() if is_so)
            return found

        self.stack.enter_context(mock.patch.object(module, name, call))


@pytest.fixture
def notes():
    with ExitStack() as stack:
        yield Notes(stack)


def ask_everything(backend: str) -> None:
    """Ask a backend what the suite asks it in small blocks."""
    subject = subjects.load(backend)
    for setting in range(SMALL_BLOCKS):
        with subject.small_blocks(setting):
            for case, dtype in [*CUT, *HALVES]:
                inputs, options = case.inputs(dtype), case.options(dtype)
                subject.attention(*inputs, **options)
                if "gradients" in subject.capabilities and case.empty_rows != "nan":
                    subject.gradients(*inputs, case.grad(dtype), **options)
            query, key, value = CUT[0][0].inputs("float32")
            query = np.where(np.arange(query.size).reshape(query.shape), query, np.nan)
            for spec in (causal(), padding(LENGTHS)):
                subject.attention(query, key, value[..., :11], mask=spec, query_offset=0)
            for name in ("attention", "grouped"):
                stream = STREAMS[name]
                decoding = stream.start(subject, dtype_name="bfloat16")
                for token in np.split(stream.tokens("bfloat16"), 7, 1):
                    stream.feed(decoding, token)


def test_torch_takes_every_branch(notes):
    from attn_torch import blocked, everyday, fused

    def parts(_, query, key, value, call, found, *rest):
        return {
            "parts: several": len(set(found)) > 1,
            "parts: neighbours alike": len(set(found)) < len(found),
            "parts: empty rows first": any(0 < part.row < call.sizes[2] for part in found),
            "parts: empty samples": any(part.row == call.sizes[2] for part in found),
            "parts: causal": any(part.causal for part in found),
            "parts: keys cut at both ends": any(
                part.start and part.stop < call.sizes[3] for part in found
            ),
            "parts: with gradients": query.requires_grad,
        }

    def blocks(found, full, needed, tile, call, kv_heads, device):
        every = [b for b in found if b.columns is not None]
        many = [b.samples.stop - b.samples.start for b in found]
        return {
            "blocks: all is hidden": len(every) < len(found),
            "blocks: gaps": any(not isinstance(b.columns, slice) for b in every),
            "blocks: partial among gaps": any(
                not isinstance(b.partial, slice | None) for b in every
            ),
            "blocks: no partial tile": any(b.partial is None for b in every),
            "blocks: partial in the middle": any(
                b.partial is not None and b.place.start for b in every
            ),
            "blocks: several samples": any(1 < n < call.sizes[0] for n in many),
            "blocks: some heads": any(b.heads.stop - b.heads.start < kv_heads for b in found),
            "blocks: a last, lower one": any(
                b.rows.stop - b.rows.start < min(tile[0], call.sizes[2]) for b in found
            ),
            "blocks: full ones": any(b.has_full for b in every),
        }

    def part(found, *_):
        block = found.block
        return {
            "weights: groups": found.groups > 1,
            "weights: groups of some heads": found.groups > 1 and block.heads.start > 0,
            "weights: empty rows": found.empty is not None,
            "weights: no number": found.nonfinite is not None,
            "weights: softcap": found.tanh is not None,
            "weights: bias": found.at_bias is not None,
        }

    notes.spy(everyday, "way_on_cpu", lambda found, *_: {f"way: {found[0]}": True})
    notes.spy(everyday, "_attend_parts", parts)
    notes.spy(everyday, "products_fit", lambda found, *_: {"products: fit": found})
    notes.spy(blocked, "plan", blocks)
    notes.spy(blocked, "BlockPart", part)
    notes.spy(
        blocked,
        "work_together",
        lambda _, work, units, threads: {
            "threads: more jobs": 1 < threads < len(units),
            "threads: one": threads == 1,
        },
    )
    notes.spy(
        blocked,
        "split_heads",
        lambda found, blocks, heads, threads: {
            "threads: fewer heads": heads < threads,
            "threads: heads for all": heads >= threads,
            "threads: more lists": 1 < threads < len(found),
        },
    )
    notes.spy(
        fused,
        "_step_in_parts",
        lambda _, query, key, *rest: {"step: parts": query.shape[0] * query.shape[1] > 3},
    )
    ask_everything("torch")
    wanted = {f"way: {way}" for way in ("kernel", "parts", "dense", "blocks")}
    wanted |= {"parts: several", "parts: neighbours alike", "parts: empty rows first",
               "parts: empty samples", "parts: causal", "parts: with gradients", "products: fit",
               "blocks: all is hidden", "blocks: gaps", "blocks: partial among gaps",
               "blocks: no partial tile", "blocks: partial in the middle",
               "blocks: several samples", "blocks: some heads", "blocks: a last, lower one",
               "blocks: full ones", "weights: groups", "weights: groups of some heads",
               "weights: empty rows", "weights: softcap", "weights: bias", "threads: more jobs",
               "threads: one", "threads: fewer heads", "threads: heads for all",
               "threads: more lists", "step: parts"}  # fmt: skip
    assert wanted <= notes, wanted - notes


def test_numpy_takes_every_branch(notes):
    from attn_numpy import blocked

    def shares(found, work):
        group = work.call.sizes[1] // work.key.shape[1]
        many = [samples.stop - samples.start for samples, _, _ in found]
        counts = [heads.stop - heads.start for _, heads, _ in found]
        return {
            "parts: several samples": any(1 < n < work.call.sizes[0] for n in many),
            "parts: heads of a group": any(n < group for n in counts),
            "parts: some groups": any(
                group <= n < work.call.sizes[1] and group > 1 for n in counts
            ),
            "keys: turned round": work.key.flags.c_contiguous,
            "keys: as they are": not work.key.flags.c_contiguous,
        }

    def plans(found, work, block, part):
        return {
            "plan: gaps": len(found.runs) > 1,
            "plan: nothing": found.width == 0,
            "plan: full and partial tiles": len(found.partial) > 0
            and any(at.start > 0 for _, at in found.partial),
            "plan: full tiles only": not found.partial,
            "plan: a last, narrower tile": found.width % work.tile[1] != 0,
        }

    def lone(found, hidden):
        whole = hidden.shape[3]
        return {
            "lone: nothing": not found.width,
            "lone: cut at both sides": found.kept.start > 0 and 0 < found.kept.stop < whole,
        }

    parts = blocked._parts
    notes.stack.enter_context(mock.patch.object(blocked, "_parts", lambda work: list(parts(work))))
    notes.spy(blocked, "_parts", shares)
    notes.spy(blocked, "_plan", plans)
    notes.spy(blocked, "_plan_lone", lone)
    notes.spy(
        blocked,
        "work_together",
        lambda _, work, units, threads: {
            "threads: more jobs": 1 < threads < len(units),
            "threads: parts of a block": len(units) > len({block for block, _ in units}),
        },
    )
    notes.spy(blocked, "_empty_row_value", lambda found, *_: {"empty rows: a mean": np.ndim(found)})
    ask_everything("numpy")
    wanted = {"parts: several samples", "parts: heads of a group", "parts: some groups",
              "keys: turned round", "keys: as they are", "plan: gaps", "plan: nothing",
              "plan: full and partial tiles", "plan: full tiles only",
              "plan: a last, narrower tile", "lone: nothing", "threads: more jobs",
              "threads: parts of a block", "empty rows: a mean"}  # fmt: skip
    assert wanted <= notes, wanted - notes


def test_jax_takes_every_branch(notes):
    """Which tiles a call is cut into, asked without running it."""
    from attn_jax import blocked
    from attn_jax.split import Lanes

    subject = subjects.load("jax")
    for setting in range(SMALL_BLOCKS):
        with subject.small_blocks(setting):
            cuts = blocked.Cuts(blocked.ROWS, blocked.COLUMNS, blocked.HEADS)
            for case, _ in CUT:
                B, H, H_kv, T, S, _, _ = case.shape
                call = mock.Mock(sizes=(B, H, T, S), mask=subject.mask(case.mask))
                for tile in blocked.fit_tiles(cuts, call, H_kv, Lanes()):
                    group = H // H_kv
                    facts = {
                        "heads: a part of a group": group > 1 and tile.heads < group,
                        "heads: a group": tile.heads == group > 1,
                        "heads: several groups": tile.heads > group > 1,
                        "rows: the last block is moved back": T % tile.rows != 0,
                        "keys: the last tile is moved back": S % tile.columns != 0,
                        "keys: half a tile is a step": tile.columns % 2 == 0,
                        "keys: one tile, no loop": tile.columns == S,
                    }
                    notes.update(word for word, is_so in facts.items() if is_so)
    wanted = set(facts)
    assert wanted <= notes, wanted - notes


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_everything_is_put_back(backend):
    subject = subjects.load(backend)

    def state():
        names = {(m, n) for setting in subject.small for m, of in setting.items() for n in of}
        modules = {m: import_module(f"attn_{backend}.{m}") for m, _ in names}
        return {(m, n): getattr(modules[m], n) for m, n in names}

    before = state()
    for setting in range(SMALL_BLOCKS):
        with subject.small_blocks(setting):
            changed = state()
        assert changed != before and state() == before


@pytest.mark.parametrize("case", TRUE_SIZES, ids=[case.name for case in TRUE_SIZES])
def test_rules_of_true_sizes_are_the_oracles(case):
    allowed, rng = case.allowed(), np.random.default_rng(0)
    offsets = np.broadcast_to(0 if case.query_offset is None else case.query_offset, case.shape.B)
    for _ in range(2000):
        b, h, t, s = map(int, rng.integers(0, allowed.shape))
        assert allowed[b, h, t, s] == reference.is_allowed(case.mask, b, h, t, s, int(offsets[b]))
