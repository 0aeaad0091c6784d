"""Sphinx configuration: `make docs` builds build/docs/index.html; warnings are errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "ivis_spark"
author = "ivis_spark developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "ivis_spark"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_show_copyright = False
default_role = "code"  # `names` in docstrings
copybutton_exclude = ".linenos, .gp"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
# Packages that only some installations have; their objects are named in signatures, not called.
autodoc_mock_imports = ["horovod", "petastorm"]
suppress_warnings = ["autodoc.mocked_object"]
