"""Settings of the documentation site: sphinx-build -W --keep-going -b html docs docs/_build/html."""

from importlib.metadata import version as installed

project = "ivimbayes"
author = "the ivimbayes developers"
project_copyright = author
version = release = installed("ivimbayes")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "py:obj"
highlight_language = "none"

# Pages: anchors as the repository's own pages have them.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

# Notebooks: docs/notebooks leads to ../notebooks, so that links written there (../docs/maps.md) hold
# here too. They run at every build.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

# Reference: types stand in the docstrings.
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 90

html_theme = "sphinx_book_theme"
html_title = "ivimbayes"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
