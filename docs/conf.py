"""Sphinx builds these pages into docs/_build/html by `make docs`. The result works offline and asks no server."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

from advbench.version import __version__  # noqa: E402

project = "advbench"
author = "The advbench maintainers"
release = version = __version__
html_title = f"advbench {__version__}"
extensions = ["myst_nb", "sphinx_copybutton", "reference"]
exclude_patterns = ["_build", "_ext", "**/.ipynb_checkpoints"]
nitpick_ignore_regex = [("py:class", ".*")]  # types of signatures, most from other packages
suppress_warnings = ["misc.highlighting_failure"]  # console blocks hold output too

myst_enable_extensions = ["attrs_inline", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True  # what the tutorial writes is no part of the pages
nb_execution_timeout = 600  # seconds for a cell: a busy machine is no failure
nb_execution_raise_on_error = True
nb_ipywidgets_js: dict[str, object] = {}  # which come from a server

toc_object_entries = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["reference.css"]
smartquotes = False  # they make one dash of two
html_show_copyright = False
html_show_search_summary = False  # it reads the pages by requests, which browsers refuse for files
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
copybutton_prompt_text = "$ "
