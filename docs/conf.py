"""How the pages become a site: `make docs`. Nothing of it is fetched, neither now nor when it is read."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "anyformer"
html_title = "anyformer"
extensions = ["myst_parser", "rendering"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
highlight_language = "text"
html_theme = "furo"
html_copy_source = html_show_sourcelink = False
html_show_sphinx = html_show_copyright = False
