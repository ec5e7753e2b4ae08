"""Drawings: the text, the table that a notebook shows instead, and what either may not do."""

import copy
import html
import pickle
from html.parser import HTMLParser
from importlib import import_module

import numpy as np
import pytest

BACKENDS = ["numpy", "torch", "jax"]
WORDS = ["I", "<script>alert(1)</script>", '" onmouseover="x', "</td>&lt;\n\u202e"]
WEIGHTS = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [np.nan] * 4, [0, 0, 0, 0]])


@pytest.fixture(params=BACKENDS)
def lib(request):
    return import_module(f"attn_{request.param}")


def array(lib, values):
    """Return an array of the library's framework."""
    module = {"attn_numpy": "numpy", "attn_torch": "torch", "attn_jax": "jax.numpy"}[lib.__name__]
    return import_module(module).asarray(np.asarray(values))


class Page(HTMLParser):
    """The tags of some HTML with their attributes, and of each table its rows of text."""

    def __init__(self, drawing):
        super().__init__()
        self.tags, self.tables, self.titles, self.text = [], [], [], ""
        self.feed(drawing._repr_html_())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            if "title" in dict(attrs):
                self.titles.append(dict(attrs)["title"])

    def handle_data(self, data):
        self.text += data
        if self.lasttag in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def cells(self, table=0):
        """Return the signs of a table, without its headers and the words behind a row."""
        header, *rows = self.tables[table]
        return [row[1 : len(header)] for row in rows]


def masks(lib):
    ids = lib.segments([[1, 1, 2, 2, 2], [1, 2, 2, 3, 3]])
    return lib.causal() & lib.padding([5, 0]) | ~ids & lib.sliding_window(1, 1)


def test_every_cell_of_a_mask_has_the_words_of_explain(lib):
    page = Page(masks(lib).draw(5, batch=1))
    said = iter(page.titles)
    for query in range(5):
        for key in range(5):
            assert next(said) == masks(lib).explain(1, 0, query, key)
    assert next(said, None) is None


def test_an_offset_reaches_the_words(lib):
    drawing = lib.causal().draw(2, 5, query_offset=3)
    assert Page(drawing).titles[-2:] == [
        lib.causal().explain(0, 0, 1, key, query_offset=3) for key in (3, 4)
    ]


def test_text_and_table_have_the_same_signs(lib):
    drawing = masks(lib).draw(5, batch=1)
    assert Page(drawing).cells() == [line.split(" ") for line in drawing.split("\n")]


def test_the_three_draw_the_same():
    libraries = [import_module(f"attn_{name}") for name in BACKENDS]
    pages = [masks(lib).draw(5, batch=1)._repr_html_() for lib in libraries]
    pages += [masks(lib)._repr_html_() for lib in libraries]
    weights = [
        lib.draw_weights(array(lib, WEIGHTS.astype("float32")), key_labels=WORDS)
        for lib in libraries
    ]
    assert len(set(pages)) == 2 and len({(w, w._repr_html_()) for w in weights}) == 1


def test_keys_are_as_many_as_queries_where_left_out(lib):
    assert lib.causal().draw(3) == lib.causal().draw(3, 3) == "■ · ·\n■ ■ ·\n■ ■ ■"


def test_a_drawing_is_its_text_and_can_be_copied(lib):
    drawing = lib.causal().draw(2)
    assert repr(drawing) == str(drawing) == "■ ·\n■ ■" and type(str(drawing)) is str
    for other in (copy.deepcopy(drawing), pickle.loads(pickle.dumps(drawing))):
        assert other == drawing and other._repr_html_() == drawing._repr_html_()


@pytest.mark.parametrize(
    ("make", "shape", "chosen"),
    [
        (lambda lib: lib.causal(), (8, 8), True),
        (lambda lib: lib.padding([3, 2]), (8, 8), True),
        (lambda lib: lib.prefix([11]), (11, 11), True),
        (lambda lib: lib.padding(hidden=array(lib, np.zeros((2, 7), bool))), (7, 7), False),
        (lambda lib: lib.segments([[1, 1, 2]], [[1, 2, 2, 2]]), (3, 4), False),
        (lambda lib: lib.allow(array(lib, np.ones((1, 1, 5, 7), bool))), (5, 7), False),
        (lambda lib: lib.segments([[1] * 40]), (32, 32), False),
    ],
    ids=["any", "lengths", "longer", "hidden", "pair", "allow", "large"],
)
def test_a_mask_shows_itself_at_the_size_that_it_knows(lib, make, shape, chosen):
    page = Page(make(lib))
    assert np.shape(page.cells()) == shape
    assert ("chosen here" in page.text) == chosen
    assert ("T = 40" in page.text and "the first 32" in page.text) == (shape == (32, 32))


@pytest.mark.parametrize("name", ["offset", "fails", "no sample"])
def test_a_mask_that_cannot_be_drawn_says_why(lib, name):
    wide = lib.allow(array(lib, np.ones((1, 1, 5, 7), bool)))
    mask, words = {
        "offset": (wide & lib.causal(), "query_offset is needed where T != S"),
        "fails": (lib.predicate(lambda *cell: 1 / 0), "division by zero"),
        "no sample": (lib.padding([]), "index"),
    }[name]
    page = Page(mask)
    assert not page.tables and words in page.text and repr(mask) in page.text


def test_fully_masked_rows_are_marked_where_all_cells_are_there(lib):
    hidden = np.zeros((1, 1, 3, 40), bool)
    hidden[..., 1, :], hidden[..., 2, :32] = True, True
    whole = Page(lib.hide(array(lib, hidden[..., :5])).draw(3, 5))
    assert [row[6:] for row in whole.tables[0][1:]] == [[], ["fully masked"], ["fully masked"]]
    assert sum(attrs.get("class") == "masked" for _, attrs in whole.tags) == 2
    assert "fully masked" not in Page(lib.hide(array(lib, hidden)).draw(3, 40)).text


def test_a_function_with_a_hostile_name_is_text(lib):
    def rule(batch, head, query, key):
        return key <= query

    rule.__name__ = "<img src=x onerror=alert(1)>'\""
    page = Page(lib.predicate(rule))
    assert {tag for tag, _ in page.tags} <= ALLOWED
    assert page.titles[0] == lib.predicate(rule).explain(0, 0, 0, 0)


ALLOWED = {"style", "div", "p", "table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_labels_are_text_and_stay_in_their_cells(lib):
    weights = array(lib, WEIGHTS)
    drawing = lib.draw_weights(weights, query_labels=WORDS, key_labels=WORDS)
    page = Page(drawing)
    assert {tag for tag, _ in page.tags} <= ALLOWED
    known = {"class", "role", "aria-label", "tabindex", "scope", "title", "style"}
    assert all(attrs.keys() <= known for _, attrs in page.tags)
    shown = [*WORDS[:3], r"</td>&lt;\n\u202e"]
    assert page.tables[0][0][1:] == shown and [row[0] for row in page.tables[0][1:]] == shown
    assert "\u202e" not in drawing and len(drawing.split("\n")) == max(map(len, shown)) + 4


def test_weights_are_shades_with_their_number(lib):
    page = Page(lib.draw_weights(array(lib, WEIGHTS), key_labels="abcd"))
    assert page.cells() == [["█", *"···"], ["▒", "▒", *"··"], [*"????"], [*"····"]]
    assert page.titles[4] == "query 1, key 0 (a): 0.5" and page.titles[8].endswith(": nan")
    assert [row[5:] for row in page.tables[0][1:]] == [[], [], [], ["all 0"]]
    colours = [attrs.get("style", "").split("#")[-1] for _, attrs in page.tags if "title" in attrs]
    assert colours[0] == "3a7fc1ff" and colours[4] == "3a7fc180" and set(colours[8:]) == {""}


def test_a_small_weight_is_not_drawn_as_none(lib):
    page = Page(lib.draw_weights(array(lib, np.array([[1e-30, 1, 0]]))))
    colours = [attrs.get("style", "").split("#")[-1] for _, attrs in page.tags if "title" in attrs]
    assert page.cells() == [["░", "█", "·"]] and colours == ["3a7fc118", "3a7fc1ff", ""]


def test_heads_stand_side_by_side_and_samples_below_each_other(lib):
    weights = np.stack([np.eye(2), 1 - np.eye(2)])[None] * np.array([1, 0.5])[:, None, None, None]
    drawing = lib.draw_weights(
        array(lib, weights), query_labels=["a", "猫"], key_labels=["x", "猫"]
    )
    assert drawing == (
        "sample 0, head 0  sample 0, head 1\n"
        "x 猫              x 猫\n"
        "█ ·               · █               a\n"
        "· █               █ ·               猫\n"
        "\n"
        "sample 1, head 0  sample 1, head 1\n"
        "x 猫              x 猫\n"
        "▒ ·               · ▒               a\n"
        "· ▒               ▒ ·               猫"
    )
    captions = ["sample 0, head 0", "sample 0, head 1", "sample 1, head 0", "sample 1, head 1"]
    assert [c for c in captions if f"<caption>{c}</caption>" in drawing._repr_html_()] == captions


def test_a_table_has_not_more_cells_than_a_notebook_bears(lib):
    drawing = lib.draw_weights(array(lib, np.full((2, 3, 40, 40), 1 / 40)))
    page = Page(drawing)
    assert [np.shape(page.cells(i)) for i in range(len(page.tables))] == [(32, 32)] * 4
    assert "T = 40" in page.text and "the first 4 of 6 grids" in page.text
    assert len(drawing.split("\n")) == 2 * 41 + 1


@pytest.mark.parametrize(
    ("shape", "labels", "error", "text"),
    [
        ((3, 4, 4), {}, ValueError, "weights[None] for (H, T, S) and weights[:, None] for (B"),
        ((4,), {}, ValueError, "weights must be (T, S) or (B, H, T, S): got (4,)"),
        ((3, 4), {"query_labels": "abcd"}, ValueError, "query_labels must be T = 3 labels: got 4"),
        ((3, 4), {"key_labels": ["a"]}, ValueError, "key_labels must be S = 4 labels: got 1"),
    ],
)
def test_what_does_not_fit_is_refused(lib, shape, labels, error, text):
    with pytest.raises(error) as caught:
        lib.draw_weights(array(lib, np.zeros(shape)), **labels)
    assert text in str(caught.value)


def test_nothing_runs_and_nothing_is_fetched(lib):
    page = Page(lib.draw_weights(array(lib, WEIGHTS)))
    assert {tag for tag, _ in page.tags} <= ALLOWED
    assert "url(" not in page.text and "@import" not in page.text
    assert html.unescape(page.text).count("attn-drawing") > 1  # the style keeps to its own class
    rules = [line for line in page.text.splitlines() if "{" in line]
    assert all(".attn-drawing.attn-drawing" in rule for rule in rules)


def test_a_part_of_packed_documents_says_what_it_is(lib):
    part = lib.packed([[2, 3], [4, 1]]).part([0, 2, 4], [1, 3])
    rows, columns = [[0, 1, 1], [0, 0, 1]], [[0, 1], [0, 0]]
    shown = f"packed().part(query_documents={rows}, key_documents={columns})"
    assert repr(part) == shown
    assert str(part.draw(3, 2, batch=1)) == "■ ■\n■ ■\n· ·"
    lines = part.explain(batch=0, head=0, query=1, key=0).splitlines()
    assert lines[1] == f"  hidden by {shown}: a query sees only the keys of its own document"
    assert part._repr_html_()
