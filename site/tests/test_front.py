"""The front page: what it says is in the atlas, for every library, and it can be used anyhow."""

import json
from pathlib import Path

import pytest
from docutils import nodes

ROOT = Path(__file__).parents[2]
ATLAS = json.loads((ROOT / "docs" / "atlas.json").read_text("utf-8"))
BUILT = ROOT / "site" / "_build" / "html" / "index.html"
GLANCE = """[...document.querySelectorAll('.answers tr')].map((row) =>
  [...row.cells].map((cell) => [cell.textContent, cell.querySelector('a')?.href ?? '']))"""
LINES = """[...document.querySelectorAll('.conversions > .sd-tab-content')].flatMap((tab) =>
  [...tab.querySelectorAll('p:has(strong)')].map((p) => [
    tab.previousElementSibling.textContent.trim(), p.textContent,
    p.nextElementSibling.textContent.trim()]))"""


def test_every_peer_is_at_a_glance_and_every_line_is_there_to_copy(tab):
    tab.goto("/index.html")
    shown = tab.evaluate("document.querySelector('main, article').textContent")
    for name, peer in ATLAS["peers"].items():
        assert name in shown, "the page is older than the atlas"
        assert peer["conversion"]["line"] in shown, name
    for library in ATLAS["libraries"].values():
        assert f"{library['name']} {library['version']}" in shown
    assert f"Measured on {ATLAS['measured']}" in shown


def test_every_cell_at_a_glance_is_the_variants_own_answer(tab):
    tab.goto("/index.html")
    head, *rows = tab.evaluate(GLANCE)
    titles = {question["title"]: name for name, question in ATLAS["questions"].items()}
    asked = []
    for _, link in head[1:-1]:
        tab.goto(link)
        heading = tab.locator(":target > :is(h2, h3, h4)").text_content()
        asked.append(titles[heading.rstrip("¶#")])
    said = []
    for (library, _), *cells, (names, _) in rows:
        for variant in names.split(", "):
            said.append(variant)
            peer = ATLAS["peers"][variant]
            words = [peer["answers"][question]["word"] for question in asked]
            assert (library, *(word for word, _ in cells)) == (library_of(peer), *words), variant
    assert sorted(said) == sorted(ATLAS["peers"])


def test_every_line_stands_by_what_true_means_to_it(tab):
    tab.goto("/index.html")
    wanted = set()
    for peer in ATLAS["peers"].values():
        name, layout, line = (peer["conversion"][what] for what in ("name", "layout", "line"))
        means, _ = words_of(ATLAS["questions"]["true"], peer["answers"]["true"])
        text = f"{name}: {means}; inputs ({', '.join(layout.split())})"
        wanted.add((ATLAS["libraries"][peer["library"]]["name"], text, line))
    assert {tuple(line) for line in tab.evaluate(LINES)} == wanted


def test_the_first_words_name_who_differs():
    said = ATLAS["peers"]
    hiding = {name for name, peer in said.items() if peer["answers"]["true"]["word"] == "hide"}
    assert {name.rpartition("mha")[0] for name in hiding} == {"torch-"}
    words = {name: peer["answers"]["nan-value"]["word"] for name, peer in said.items()}
    assert words.pop("hf-attn-rosetta") == "fine"
    assert set(words.values()) == {"NaN"}
    assert ">hide</abbr>s the key" in BUILT.read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(site, browser, width, scheme):
    settings = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    page = browser.new_page(**settings)
    page.goto(f"{site}/index.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_a_library_is_chosen_without_scripts_and_by_keyboard(site, browser):
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{site}/index.html")
    line = page.get_by_text("jax.nn.dot_product_attention(q, k, v, mask=allowed)")
    assert not line.is_visible()
    page.locator(".conversions > input").first.focus()
    page.keyboard.press("ArrowRight")
    assert line.is_visible()
    page.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```{answers} nothing\n```", "a question must be one of true, float-inf"),
        ("{answer}`nobody true`", "a peer must be one of torch-sdpa"),
        ("{answer}`jax-nn nothing`", "a question must be one of true, float-inf"),
        ("{libraries}`nothing attend`", "a question must be one of true, float-inf"),
        ("{libraries}`true nobody`", "an answer must be somebody's: got true nobody"),
        ("{libraries}`true attend number`", "an answer must be somebody's: got true attend number"),
        ("```{glance}\nnothing: head\n```", "a question must be one of true, float-inf"),
    ],
)
def test_a_name_that_the_atlas_does_not_have_fails_the_build(build, text, told):
    heard, _ = build(f"# Title\n\n{text}\n")
    assert told in heard


def test_a_quoted_answer_carries_version_and_date(build):
    text = "{answer}`jax-nn empty`, {libraries}`true hide`, {libraries}`true hide count`"
    text += ", {libraries}`mask-and-causal only the flag`"
    heard, page = build(f"# Title\n\n{text}\n")
    assert not heard
    (answer,) = page.findall(nodes.abbreviation)
    assert f"jax-nn, jax {ATLAS['libraries']['jax']['version']}" in answer["explanation"]
    assert answer["explanation"].endswith(f", {ATLAS['measured']}")
    word = ATLAS["peers"]["jax-nn"]["answers"]["empty"]["word"]
    assert answer.parent.astext() == f"{word}, PyTorch, 1, PyTorch"


@pytest.mark.filterwarnings("ignore:'myst_parser")  # it uses what Sphinx 11 will not have
def test_a_table_of_answers_says_what_the_atlas_says(build):
    """Every question's table has each variant that offers it, beside its own answer."""
    tables = "".join(f"```{{answers}} {name}\n```\n" for name in ATLAS["questions"])
    _, page = build(f"# Title\n\n{tables}")
    shown = [next(table.findall(nodes.tbody)) for table in page.findall(nodes.table)]
    for (name, question), table in zip(ATLAS["questions"].items(), shown, strict=True):
        wanted = {
            (library_of(peer), answer["word"], *words_of(question, answer), variant)
            for variant, peer in ATLAS["peers"].items()
            if (answer := peer["answers"][name])["kind"] != "not offered"
        }
        rows = [[cell.astext() for cell in row.findall(nodes.entry)] for row in table]
        said = [(*cells, variant) for *cells, names in rows for variant in names.split(", ")]
        assert len(said) == len(wanted)
        assert set(said) == wanted


def library_of(peer: dict) -> str:
    return " ".join(ATLAS["libraries"][peer["library"]].values())


def words_of(question: dict, answer: dict) -> tuple[str, str]:
    known = question["answers"].get(answer.get("answer"), answer)
    return known.get("means", ""), known.get("gives", "")
