"""Settings of the site that `make docs` builds with Sphinx; tools/docs.py gathers its pages."""

import inspect
import re
import sys
from configparser import ConfigParser
from dataclasses import is_dataclass
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(ROOT / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
logger = logging.getLogger(__name__)

project = settings["title"]
author = settings["author"]
project_copyright = settings["copyright"]
release = settings["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
suppress_warnings = [
    "myst.header",
    "ref.python",
]  # a level of headings is skipped; two fields of one name

# Notebooks: shown with their committed outputs, never executed.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_mime_priority_overrides = [("html", "text/html", 10), ("html", "text/markdown", 20)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 6  # as GitHub makes them

# Docstrings: Google style, with `code` in single backticks.
default_role = "code"
autodoc_default_options = {"exclude-members": "set"}  # matplotlib writes one into its classes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"


def mathml(node: nodes.Element, display: str) -> str:
    """A formula as MathML, which browsers draw themselves: no script, no network."""
    text = re.sub(r"\\arg(?![a-z])", r"\\operatorname{arg}", node.astext())
    try:
        formula = convert(text, display=display)
        unknown = re.findall(r"\\[A-Za-z]+", formula)
    except Exception as error:
        formula, unknown = f"<code>{escape(text)}</code>", [repr(error)]
    if unknown:
        logger.warning("formula %r: %s", text, ", ".join(unknown), location=node)
    return formula


def inline(self: Any, node: nodes.math) -> None:
    """A formula in a sentence."""
    self.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own; a wide one can be scrolled."""
    self.body.append(f'<div class="math-block">{mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def describe_fields(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """The fields of a configuration, from the comments behind them, as arguments."""
    if not (is_dataclass(value) and isinstance(value, type)) or "Args:" in lines:
        return
    comments = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(value), re.M))
    fields = [f"    {key}: {comments[key]}" for key in value.__annotations__ if key in comments]
    if fields:
        lines += ["Args:", *fields, ""]


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("autodoc-process-docstring", describe_fields, priority=400)  # before napoleon
