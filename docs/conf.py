"""Settings of the site, which `make -C docs html` builds.

The root of the sources is the repository, so that a link between files is right on the site and in the repository.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from siglip_jax import __version__  # noqa: E402

project = "siglip_jax"
version = release = __version__
copyright = "the authors of siglip_jax"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "*.md"]
exclude_patterns = ["README.md", ".*", "**/__pycache__", "build", "dist", "docs/_build", "siglip_jax", "tests"]

# A test executes each notebook and compares every output with the stored one, so the site shows those.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

toc_object_entries_show_parents = "hide"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # the signature has the types
napoleon_use_ivar = True
napoleon_use_rtype = False

# Names of other projects, since the build needs no network and so no inventories; and private names in annotations.
nitpick_ignore_regex = [("py:.*", r"(?!siglip_jax\.).*"), ("py:class", r"siglip_jax(\.\w+){3,}")]

html_theme = "sphinx_book_theme"
html_title = "siglip_jax"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "home_page_in_toc": False,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
}
