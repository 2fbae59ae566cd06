"""Sphinx's settings: ``make docs`` builds the pages, and fails if anything in them leads nowhere."""

import dasktrain

project = "dasktrain"
version = release = dasktrain.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 3

html_theme = "furo"
html_title = f"dasktrain {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what things are, in words
napoleon_google_docstring = False
napoleon_attr_annotations = False

nitpicky = True
# What is not ours is not on these pages: torch, Dask, and the types of Python.
nitpick_ignore_regex = [("py:.*", r"(?!dasktrain\b).*")]
