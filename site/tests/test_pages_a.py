"""Pages with tabs: they open without scripts and go together, and three backends say the same."""

import pytest

PAGES = ["why-nan", "causal", "padding", "decoding"]
SHOWN = """label => [...document.querySelectorAll('.sd-tab-label')]
    .filter(tab => tab.textContent.trim() == label)
    .map(tab => tab.nextElementSibling.checkVisibility())"""
PRINTED = """[...document.querySelectorAll('.sd-tab-set:not(.side-by-side)')]
    .map(set => [...set.querySelectorAll('.sd-tab-content')])
    .filter(tabs => tabs.length == 3 && tabs.every(tab => tab.textContent.includes('attn_')))
    .map(tabs => tabs.map(tab => tab.querySelector('.shown').textContent.trim()))"""


@pytest.mark.parametrize("page", [*PAGES, "todays-models", "more-than-one-device"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_does_not_scroll_sideways(tab, page, width):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(f"/{page}.html")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("page", PAGES)
def test_tabs_open_without_scripts(site, browser, page):
    with browser.new_context(base_url=site, java_script_enabled=False) as context:
        opened = context.new_page()
        opened.goto(f"/{page}.html")
        label = opened.locator(".sd-tab-label", has_text="JAX").first
        text = label.locator("xpath=following-sibling::*[1]")
        assert not text.is_visible()
        label.click()
        assert text.is_visible()


@pytest.mark.parametrize("page", PAGES)
def test_one_choice_opens_every_tab_of_a_backend(tab, page):
    tab.goto(f"/{page}.html")
    tab.locator(".sd-tab-label", has_text="JAX").first.click()
    shown = tab.evaluate(SHOWN, "JAX")
    assert len(shown) > 1
    assert all(shown)


@pytest.mark.parametrize("page", PAGES)
def test_the_three_backends_print_the_same(tab, page):
    tab.goto(f"/{page}.html")
    sets = tab.evaluate(PRINTED)
    assert sets
    for printed in sets:
        assert len(set(printed)) == 1, f"three backends print the same: got {printed}"
