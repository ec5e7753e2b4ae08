"""How Sphinx builds the site: `nox -s site` writes it to site/_build."""

import sys
from pathlib import Path

SITE = Path(__file__).parent
ROOT = SITE.parent
sys.path[:0] = [str(ROOT), str(SITE / "_ext")]

project = "attn-rosetta"
html_title = "attn-rosetta"
extensions = [
    "myst_parser",
    "sphinx_design",
    "api",
    "explorer",
    "formulas",
    "panels",
    "phrase",
    "project_pages",
    "run",
    "side_by_side",
    "answers",
]
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["_build", "_ext", "_templates", "tests", "node_modules"]
nitpicky = True
smartquotes = False  # a docstring's "zero" is a value
suppress_warnings = ["config.cache"]  # the functions of extensions cannot be pickled

html_theme = "furo"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b57a4", "color-brand-content": "#0b57a4"},
    "dark_css_variables": {"color-brand-primary": "#7cb7ff", "color-brand-content": "#7cb7ff"},
}
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_additional_pages = {"404": "404.html"}
html_css_files = ["site.css"]
html_js_files = ["columns.js", "focus.js"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

# Pages of the repository that are pages of the site, too: where each is shown.
project_pages = {
    "reference/contract": "conformance/CONTRACT.md",
    "reference/atlas": "docs/atlas.md",
    "reference/kill-matrix": "docs/kill-matrix.md",
    "reference/mutation": "docs/mutation.md",
    "reference/benchmarks": "docs/benchmarks.md",
    "reference/plug-in": "docs/plug-in.md",
    "reference/pytest": "docs/pytest.md",
    "reference/kernels": "docs/kernels.md",
    "reference/pipe": "docs/pipe.md",
    "reference/transformers": "docs/transformers.md",
    "reference/torch-nn": "docs/torch-nn.md",
    "reference/flax": "docs/flax.md",
    "reference/weights": "docs/weights.md",
    "reference/which-clause": "docs/which-clause.md",
    "reference/vectors": "conformance/vectors/README.md",
}
