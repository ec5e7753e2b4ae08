"""The front page: what it says is in the atlas, for every library, and it can be used anyhow."""

import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
ATLAS = json.loads((ROOT / "docs" / "atlas.json").read_text("utf-8"))
BUILT = ROOT / "site" / "_build" / "html" / "index.html"


sys.path.append(str(ROOT / "site" / "_ext"))


def test_every_peer_is_at_a_glance_and_every_line_is_there_to_copy(tab):
    tab.goto("/index.html")
    shown = tab.evaluate("document.querySelector('main, article').textContent")
    for name, peer in ATLAS["peers"].items():
        assert name in shown, "the page is older than the atlas"
        assert peer["conversion"]["line"] in shown, name
    for library in ATLAS["libraries"].values():
        assert f"{library['name']} {library['version']}" in shown
    assert f"Measured on {ATLAS['measured']}" in shown


def test_the_first_words_name_who_differs():
    said = ATLAS["peers"]
    hiding = {name for name, peer in said.items() if peer["answers"]["true"]["word"] == "hide"}
    assert {name.rpartition("mha")[0] for name in hiding} == {"torch-"}
    assert {peer["answers"]["nan-value"]["word"] for peer in said.values()} == {"NaN"}
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
        ("{libraries}`true nobody`", "an answer must be somebody's"),
        ("```{glance}\nnothing: head\n```", "a question must be one of true, float-inf"),
    ],
)
def test_a_name_that_the_atlas_does_not_have_fails_the_build(tmp_path, text, told):
    warnings = built(tmp_path, text)
    assert told in warnings


def test_a_quoted_answer_carries_version_and_date(tmp_path):
    built(tmp_path, "{answer}`jax-nn empty` and {libraries}`true hide`")
    html = (tmp_path / "html" / "index.html").read_text("utf-8")
    version = ATLAS["libraries"]["jax"]["version"]
    assert f"jax-nn, jax {version}" in html and f', {ATLAS["measured"]}"' in html
    assert ">mean</abbr> and <span>PyTorch</span>" in html


def built(folder: Path, text: str) -> str:
    """Build a page of one line beside the atlas; return the warnings."""
    source = folder / "site"
    source.mkdir()
    (folder / "docs").mkdir()
    (folder / "docs" / "atlas.json").write_text(json.dumps(ATLAS), "utf-8")
    (source / "index.md").write_text(f"# Title\n\n{text}\n", "utf-8")
    extensions = ["myst_parser", "sphinx_design", "answers"]
    warnings = StringIO()
    Sphinx(
        source, None, folder / "html", folder / "trees", "html", status=None, warning=warnings,
        confoverrides={"extensions": extensions, "suppress_warnings": ["myst.xref_missing"]},
    ).build()  # fmt: skip
    return warnings.getvalue()
