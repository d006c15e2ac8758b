"""Configuration of the site: python -m sphinx -W docs build/site."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

project = "gptft"
author = "the authors of gptft"
html_title = "gptft"
highlight_language = "text"
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.strikethrough"]

# The API comes from docstrings in Google style, in which `x` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True


def setup(app: Sphinx) -> None:
    """Writes the generated pages first, and adapts the links of the others."""
    import reference

    def adapt(app: Sphinx, name: str, source: list[str]) -> None:
        if not name.startswith("generated/"):
            source[0] = reference.adapt_links(source[0], HERE / f"{name}.md")

    app.connect("builder-inited", lambda app: reference.write_pages(HERE / "generated"))
    app.connect("source-read", adapt)
