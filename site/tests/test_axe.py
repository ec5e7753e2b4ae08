"""Nobody is shut out: axe-core finds nothing serious on any page, in light and in dark."""

from pathlib import Path

import pytest

SITE = Path(__file__).parents[1]
BUILT = SITE / "_build" / "html"
AXE = SITE / "node_modules" / "axe-core" / "axe.min.js"
PAGES = sorted(path.relative_to(BUILT).as_posix() for path in BUILT.rglob("*.html"))
LOOKS = {"light, wide": ("light", 1400), "dark, narrow": ("dark", 400)}
RUN = "axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations)"


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not here: `npm ci` in site/ fetches it")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(tab, path, look):
    scheme, width = LOOKS[look]
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(f"/{path}")
    tab.add_script_tag(path=AXE)
    found = [rule for rule in tab.evaluate(RUN) if rule["impact"] in ("serious", "critical")]
    told = [
        f"{rule['id']} ({rule['impact']}, {len(rule['nodes'])}): {rule['nodes'][0]['html'][:200]}"
        for rule in found
    ]
    assert not told, "\n".join(told)
