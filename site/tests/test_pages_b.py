"""The phrasebook's lines are cut from the files and compared; the API's page has every name."""

from pathlib import Path

import pytest

SITE = Path(__file__).parents[1]
BUILT = SITE / "_build" / "html"

WHERE = "np.where(a, 1, 2)", "torch.where(a, 1, 2)", "jnp.where(a, 1, 2)"
PHRASES = {
    "agree": (WHERE, ""),
    "gone": ((f"{WHERE[0]}  # masks.py", *WHERE[1:]), "a line is in attn_numpy/masks.py: got"),
    "other_value": ((*WHERE[:2], "jnp.where(a, 1, 3)"), "three frameworks give the same: got"),
    "other_shape": ((*WHERE[:2], "jnp.where(a, 1, 2)[None]"), "three frameworks give the same"),
    "fails": (("np.no_such_name(a)", *WHERE[1:]), "no_such_name"),
    "two_lines": (WHERE[:2], "three lines, or a comment: got 2"),
}


@pytest.mark.parametrize("name", PHRASES)
def test_a_phrase_that_does_not_hold_fails_the_build(build, name):
    lines, complaint = PHRASES[name]
    text = "\n".join(["# A page", "```{phrase} Choose", "a = np.eye(2) > 0", "", *lines, "```"])
    heard, _ = build(text)
    assert complaint in heard
    assert bool(heard) == bool(complaint), heard


TITLES = {"attn_numpy": "NumPy", "attn_torch": "PyTorch", "attn_jax": "JAX"}
SECTIONS = """[...document.querySelectorAll('h3')].map((e) => [e.firstChild.textContent,
    [...e.parentElement.querySelectorAll('.sd-tab-label')].map((tab) => tab.textContent.trim())])"""


@pytest.mark.parametrize("folder", TITLES)
def test_the_api_page_has_every_public_name(tab, folder):
    import importlib

    tab.goto("/reference/api.html")
    sections = dict(tab.evaluate(SECTIONS))
    names = [name for name, tabs in sections.items() if not tabs or TITLES[folder] in tabs]
    assert sorted(names) == sorted(importlib.import_module(folder).__all__)


def test_no_page_names_the_folder_that_it_was_built_in():
    pages = {str(page): page.read_text("utf-8") for page in BUILT.rglob("*.html")}
    assert pages
    assert not [page for page, text in pages.items() if str(SITE) in text]


def test_a_page_that_is_not_there_leads_to_pages_that_are(tab, site):
    tab.goto("/404.html")
    links = tab.evaluate("[...document.querySelectorAll('a')].map(e => e.href)")
    assert links
    assert all((BUILT / link.removeprefix(f"{site}/")).is_file() for link in links)
