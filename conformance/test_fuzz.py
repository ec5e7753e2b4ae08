"""Calls that nobody thought of: Hypothesis varies shapes, masks, dtypes and offsets together.

The same examples every time, unless `--fuzz` asks for new ones. Where every new shape would cost a
compilation, the subject does not declare "any_shape" and is not asked. A failure prints a snippet
that runs on its own.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import mask_spec
from .cases.arrays import coins
from .cases.attention import PLAIN, Case, Shape
from .cases.compare import check_cut, check_cut_gradients, check_gradients, check_steps
from .contract import clause
from .oracle.tolerance import Differs
from .subjects.protocol import SMALL_BLOCKS, NotOffered

pytestmark = [pytest.mark.untyped, pytest.mark.needs("any_shape")]
SEEDS = st.integers(0, 2**16)
DTYPES = st.sampled_from(["float64", "float32", "float16", "bfloat16"])
SETTINGS = st.integers(0, SMALL_BLOCKS - 1)
TILES = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def shapes(draw, least: int = 1) -> Shape:
    """Any shape; lengths and widths of at least `least`."""
    H_kv, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    B = draw(st.integers(1, 4))
    T, S, D, D_v = (draw(st.integers(least, top)) for top in (6, 8, 7, 5))
    return Shape(B, H_kv * group, H_kv, T, S, D, D_v)


def leaves(shape: Shape) -> st.SearchStrategy[mask_spec.Spec]:
    """One mask of any kind that fits the shape."""
    B, H, _, T, S, _, _ = shape
    lengths = st.lists(st.integers(0, S), min_size=B, max_size=B)
    counts, share = st.integers(0, max(T, S)), st.floats(0, 1)
    heads, samples = st.sampled_from([1, H]), st.sampled_from([1, B])

    def ids(length):
        row = st.lists(st.integers(0, 3), min_size=length, max_size=length)
        return st.lists(row, min_size=B, max_size=B)

    # As many documents, some of them empty, as cuts between 0 and at most S make
    cuts = st.lists(st.lists(st.integers(0, S), min_size=3, max_size=3), min_size=B, max_size=B)
    documents = cuts.map(lambda ends: np.diff(np.sort(ends), axis=1, prepend=0))

    def flags(kind):
        return st.builds(
            lambda seed, b, h, true: kind(coins(seed, b, h, T, S, true=true)),
            SEEDS, samples, heads, share,
        )  # fmt: skip

    return st.one_of(
        st.just(mask_spec.causal()),
        st.builds(mask_spec.sliding_window, counts, counts),
        st.builds(mask_spec.chunked, st.integers(1, S + 1)),
        st.builds(mask_spec.prefix, lengths),
        st.builds(mask_spec.padding, lengths),
        st.builds(
            lambda seed, p: mask_spec.padding(hidden=coins(seed, B, S, true=p)), SEEDS, share
        ),
        st.builds(mask_spec.segments, ids(S)),
        st.builds(mask_spec.segments, ids(T), ids(S)),
        st.builds(mask_spec.packed, documents),
        flags(mask_spec.allow),
        flags(mask_spec.hide),
    )


def masks(shape: Shape) -> st.SearchStrategy[mask_spec.Spec]:
    """Any combination of masks that fits the shape."""
    return st.recursive(
        leaves(shape),
        lambda part: st.one_of(
            st.builds(lambda a, b: a & b, part, part),
            st.builds(lambda a, b: a | b, part, part),
            st.builds(lambda a: ~a, part),
        ),
        max_leaves=4,
    )


@st.composite
def parts(draw, shape: Shape, whole: Shape) -> mask_spec.Spec:
    """Some rows and columns of a mask of a whole call, and maybe a part of that again."""
    spec, offsets = draw(masks(whole)), st.integers(-3, whole.S)
    each = st.lists(offsets, min_size=shape.B, max_size=shape.B).map(np.array)
    sizes = (whole.T, whole.S)
    if draw(st.booleans()):
        between = draw(st.integers(1, 6)), draw(st.integers(1, 8))
        spec = spec.part(*(draw(_places(*pair)) for pair in zip(between, sizes, strict=True)),
                         draw(offsets | each))  # fmt: skip
        sizes = between
    places = [draw(_places(*pair)) for pair in zip((shape.T, shape.S), sizes, strict=True)]
    spec = spec.part(*places, draw(offsets | each))
    other = draw(st.none() | leaves(shape))
    return spec if other is None else draw(st.sampled_from([spec & other, other | ~spec]))


def _places(count: int, size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size - 1), min_size=count, max_size=count)


@st.composite
def cases(draw, least: int = 1) -> Case:
    shape = draw(shapes(least))
    one = st.integers(-3, shape.S)
    each = st.lists(one, min_size=shape.B, max_size=shape.B).map(np.array)
    return Case(
        "fuzz",
        shape,
        mask=draw(st.none() | masks(shape)),
        query_offset=draw(one | each),
        bias=draw(st.sampled_from([None, "rank2", "rank4", "heads"])),
        scale=draw(st.sampled_from([None, 0.0, 1.5, -0.3])),
        softcap=draw(st.sampled_from([None, 0.7, 30.0])),
        empty_rows=draw(st.sampled_from(["zero", "nan", "uniform"])),
        seed=draw(SEEDS),
    )


def loading(subject) -> str:
    """Return the call that loads a subject once more."""
    option, name = subject.asked_as.split(maxsplit=1)
    calls = {"--backend": "subjects.load({})", "--mutant": "mutants.load({})"}
    return calls.get(option, "subjects.plug({})[0]").format(f"{name!r}, {subject.device!r}")


def snippet(subject, case: Case, check: str, *arguments) -> str:
    """Return Python that runs this one example."""
    fields = [f"shape={case.shape!r}", f"mask={case.mask!r}", f"seed={case.seed}"]
    fields += [f"{n}={getattr(case, n)!r}" for n in ("bias", "scale", "softcap", "empty_rows")]
    offset = np.asarray(case.query_offset).tolist()
    fields += [f"query_offset={'np.array' if isinstance(offset, list) else ''}({offset})"]
    return (
        "import numpy as np\n"
        "from conformance.cases.attention import Case, Shape\n"
        f"from conformance.cases.compare import {check}\n"
        "from conformance.mask_spec import *\n"
        "from conformance import mutants, subjects\n\n"
        f"case = Case('fuzz', {', '.join(fields)})\n"
        f"{check}({loading(subject)}, case, "
        f"{', '.join(map(repr, arguments))})\n"
    )


def offered(subject, case: Case) -> Case:
    """Return the case without what the subject does not offer."""
    names = ("bias", "scale", "softcap", "empty_rows")
    changes = {n: getattr(PLAIN, n) for n in names if n not in subject.capabilities}
    if "grouped" not in subject.capabilities:
        changes["shape"] = case.shape._replace(H_kv=case.shape.H)
    return replace(case, **changes)


def run(subject, case: Case, check, *arguments) -> None:
    case = offered(subject, case)
    try:
        check(subject, case, *arguments)
    except NotOffered:
        raise
    except Exception as error:
        error.add_note(f"run it alone:\n\n{snippet(subject, case, check.__name__, *arguments)}")
        raise


@clause("ATT-13")
@given(case=cases(), dtype=DTYPES)
def test_any_call_is_the_formula(subject, case, dtype):
    if dtype in subject.dtypes:
        run(subject, case, check_steps, dtype)


@clause("GRAD-1")
@pytest.mark.needs("gradients")
@given(case=cases(least=3))  # a budget is read off the case, which must have enough numbers
def test_any_gradient_is_the_oracles(subject, case):
    if case.empty_rows != "nan":  # the forward only
        run(subject, case, check_gradients, "float32")


@clause("ATT-9")
@pytest.mark.needs("small_blocks")
@given(case=cases(), dtype=DTYPES, setting=SETTINGS, tile=TILES)
def test_any_call_that_is_cut_is_the_formula(subject, case, dtype, setting, tile):
    if dtype in subject.dtypes:
        run(subject, case, check_cut, dtype, setting, tile)


@clause("GRAD-3")
@pytest.mark.needs("small_blocks")
@pytest.mark.needs("gradients")
@given(case=cases(least=3), setting=SETTINGS)
def test_any_gradient_that_is_cut_is_the_oracles(subject, case, setting):
    if case.empty_rows != "nan":  # the forward only
        run(subject, case, check_cut_gradients, "float32", setting)


@clause("MASK-10")
@pytest.mark.needs("masks")
@given(data=st.data())
def test_any_mask_is_asked_alike_by_cells_and_by_tiles(subject, data):
    shape = data.draw(shapes())
    case = Case("fuzz", shape, data.draw(masks(shape)), data.draw(st.integers(-3, shape.S)))
    B, H, T, S = shape.call
    allowed = case.allowed()
    edges = st.integers(0, max(T, S))
    top, left = data.draw(edges), data.draw(edges)
    options = {"query_offset": case.query_offset, "batch": B, "heads": H}
    for rows, columns in product((slice(0, top), slice(top, T)), (slice(0, left), slice(left, S))):
        block = allowed[:, :, rows, columns]
        expected = "all" if block.all() and block.size else "partial" if block.any() else "none"
        got = subject.ask("tile", case.mask, T, S, rows, columns, **options)
        if got != expected:
            raise Differs(f"tile {rows} x {columns} of {case.mask}: expected {expected}, got {got}")
