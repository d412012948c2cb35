"""Sphinx configuration of the documentation. Building it needs no network."""

from sphinx.domains.python import PyObject

from reloc_core import __version__

project = "reloc"
author = "the reloc authors"
copyright = "the reloc authors, Apache-2.0"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
root_doc = "index"
default_role = "literal"  # docstrings write `name` for code

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" describes fields; autodoc would list them a second time
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {
    name: name for name in ("FloatArray", "Float64Array", "BoolArray", "ImageArray", "DepthArray")
}
maximum_signature_line_length = 120
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "reloc"
html_static_path = ["_static"]
html_css_files = ["reloc.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "default"
pygments_dark_style = "github-dark"

# Fields of dataclasses are "Attributes" in docstrings and should be so on the page.
for field in PyObject.doc_field_types:
    if field.name == "variable":
        field.label = "Attributes"
