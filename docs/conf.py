"""Settings of the documentation; `make docs` builds it."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "ext"))

project = "layerstats"
author = copyright = "The layerstats developers"
version = release = version_of("layerstats")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "docstrings"]
exclude_patterns = ["_build", "ext", "generated/tables"]
default_role = "name"
nitpicky = True
smartquotes = False  # or else --floor becomes a dash

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # or else every word of a type is looked up as a name
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["deflist"]
html_math_renderer = "mathml"  # docstrings.py: no script, no network

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = "layerstats"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
