"""Every page loads without an error and asks no other host; every link inside the site is good."""

from pathlib import Path
from urllib.parse import parse_qsl, urldefrag, urljoin

import pytest

BUILT = Path(__file__).parents[1] / "_build" / "html"
PAGES = sorted(path.relative_to(BUILT).as_posix() for path in BUILT.rglob("*.html"))
LINKS = "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_and_asks_nobody_else(tab, path):
    reply = tab.goto(f"/{path}")
    assert reply.ok
    assert tab.title()


def test_every_link_inside_the_site_leads_somewhere(tab):
    anchors, wanted = {}, {}
    for path in PAGES:
        tab.goto(f"/{path}")
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        anchors[path] = {"", *ids}
        for link in tab.evaluate(LINKS):
            file, anchor = urldefrag(urljoin(path, link))
            if ":" not in file and "=" not in anchor:  # an anchor with "=" is a state of a page
                wanted[path, file, anchor] = link
    lost = [
        (path, link)
        for (path, file, anchor), link in wanted.items()
        if anchor not in anchors.get(file, set()) and not (file not in anchors and exists(file))
    ]
    assert len(wanted) > 100
    assert not lost, f"a link leads to a page, and to a place on it: got {lost[:10]}"


def test_every_link_to_a_state_shows_that_state(tab):
    """The page writes its state into the address when a cell is chosen: that is the link's."""
    links = {}
    for path in PAGES:
        tab.goto(f"/{path}")
        links |= {urljoin(path, link): path for link in tab.evaluate(LINKS) if "=" in link}
    states = {link: path for link, path in links.items() if link.startswith("explorer.html#")}
    assert len(states) > 8
    for link, path in states.items():
        tab.goto("about:blank")
        tab.goto(f"/{link}")
        tab.locator("#ex-grid [tabindex='0']").click()
        shown, wanted = ({*parse_qsl(urldefrag(url).fragment)} for url in (tab.url, link))
        assert wanted <= shown, f"{path} links to a state: got {wanted - shown} that it is not"


def exists(file: str) -> bool:
    return (BUILT / file).is_file()
