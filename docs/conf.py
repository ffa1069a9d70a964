"""Sphinx configuration."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "embedding-pipeline"
author = "The embedding-pipeline authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = "embedding-pipeline"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
smartquotes = False  # keeps the dashes of options
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True  # attributes without index entries: fields are documented once
