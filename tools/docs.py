"""docs.py: an HTML site of all notebooks and docstrings, under _docs/html. Run by `make docs`.

Nothing is executed, and nothing is fetched: notebooks are shown with their committed outputs.
Every notebook under nbs/ is a page, and every module has a page of the reference. The exit code is
1 when an internal link is broken, in a notebook or in the site.
"""

import inspect
import io
import re
import shutil
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
from nbformat import NotebookNode

import atesc
from atesc.app.run_all import ALL

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_docs"
SOURCE, HTML = SITE / "source", SITE / "html"
ROOMS = {  # folder of nbs/ -> heading, in the order of the site
    "story": "The story",
    "experiments": "Experiments",
    "method": "Method: how does it get out?",
    "synthesis": "Synthesis: what makes the images?",
    "teachers": "Teachers: who is distilled?",
    "data": "Data: on what?",
    "study": "Study: does it hold?",
    "app": "App: the command, and a page with sliders",
    "inside": "Inside: files, records and checks",
}
PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "DEPENDENCIES.md"]
LINK = re.compile(r"(!?\[([^][]*)\]\()([^()\s]+)\)")  # start, text and target of a link


def notebooks(room: str) -> list[Path]:
    """The notebooks of a folder of nbs/, in the order in which they are read."""
    paths = (ROOT / "nbs" / room).glob("*.ipynb")
    known = {name: number for number, name in enumerate(ALL)}
    return sorted(paths, key=lambda path: (known.get(path.stem, len(known)), path.name))


def linked(text: str, page: Path, broken: list[str]) -> str:
    """The Markdown of a page with links as they must be in the site.

    Args:
        text: Markdown
        page: file of the checkout that it stands in
        broken: a line is added for each link that leads nowhere

    Returns:
        the text; a link to a folder of notebooks leads to its table of contents
    """

    def moved(match: re.Match[str]) -> str:
        start, text, link = match.groups()
        if urlsplit(link).scheme:
            return match[0]
        path, *anchor = link.split("#", 1)
        # JupyterLab keeps letters and signs of a heading in its anchor; GitHub and the site do not.
        anchor = [re.sub(r"[^\w -]", "", unquote(part).lower()) for part in anchor]
        if not path:
            return f"{start}#{anchor[0]})"
        target = (page.parent / unquote(path)).resolve()
        if not target.exists():
            broken.append(f"{page.relative_to(ROOT)}: {link} does not exist")
            return text
        up = "../" * (len(place(page).parts) - 1)
        there = place(target / "index.md" if target.is_dir() else target)
        return start + "#".join([up + there.as_posix(), *anchor]) + ")"

    return LINK.sub(moved, text)


def place(path: Path) -> Path:
    """Where a file of the checkout is in the site's sources, relative to their folder."""
    relative = path.relative_to(ROOT)
    return relative.relative_to("nbs") if relative.parts[0] == "nbs" else relative


def shown(notebook: NotebookNode, page: Path, broken: list[str]) -> NotebookNode:
    """A notebook without nbdev's directives and hidden cells, and with links of the site."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, page, broken)
        elif cell.cell_type == "code":
            if re.search(r"^#\| *hide\b", cell.source, re.M):
                continue
            cell.source = re.sub(r"^#\|.*\n*", "", cell.source, flags=re.M)
            if "remove_input" in cell.metadata.get("tags", []):
                cell.metadata.tags.append("remove-input")
            if not cell.source.strip() and not cell.outputs:
                continue
            for data in (out.get("data", {}) for out in cell.outputs):
                for kind in {"text/html", "text/markdown"} & set(data):
                    data[kind] = data[kind].replace(" ± ", "\u00a0±\u00a0")  # is not broken there
        cells.append(cell)
    notebook.cells = cells
    return notebook


def about(path: Path) -> tuple[str, str]:
    """Title and subtitle of a notebook."""
    first = nbformat.read(path, as_version=4).cells[0].source
    title = re.search(r"^# (.+)", first, re.M)
    subtitle = re.search(r"^> (.+)", first, re.M)
    return title[1] if title else path.stem, subtitle[1] if subtitle else ""


def toctree(entries: list[str], *options: str) -> str:
    """A hidden table of contents in MyST Markdown."""
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *entries, "```", ""])


def write(name: str, text: str) -> None:
    """A page of the site's sources."""
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def gather_room(room: str, broken: list[str]) -> list[str]:
    """The pages of a folder of nbs/ and its table of contents.

    Returns:
        the entry of the site's table of contents; none for a folder without notebooks
    """
    paths = notebooks(room)
    if not paths:
        return []
    lines = []
    for path in paths:
        title, subtitle = about(path)
        lines.append(f"- [{title}]({path.name}): {subtitle}")
        gather_notebook(path, broken)
    contents = toctree([path.name for path in paths])
    write(f"{room}/index.md", "\n".join([f"# {ROOMS[room]}", "", *lines, "", contents]))
    return [f"{room}/index"]


def gather_notebook(path: Path, broken: list[str], more: str = "") -> None:
    """A notebook as a page; a module's notebook links to the reference."""
    notebook = shown(nbformat.read(path, as_version=4), path, broken)
    module = module_of(path)
    if module:
        more += f"\n---\nReference: [{module}](../api/{module}.rst)\n"
    if more:
        cell = nbformat.v4.new_markdown_cell(more)
        cell.id = "more"
        notebook.cells.append(cell)
    target = SOURCE / place(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def module_of(path: Path) -> str:
    """The module that a notebook exports, or nothing."""
    text = path.read_text(encoding="utf-8")
    match = re.search(r"#\| default_exp ([\w.]+)", text)
    return f"atesc.{match[1]}" if match else ""


def heading(text: str, under: str = "=") -> str:
    """A heading in reStructuredText."""
    return f"{text}\n{under * len(text)}\n\n"


def summary(value: Any) -> str:
    """The first sentence or paragraph of a docstring."""
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def gather_reference() -> None:
    """The names of `import atesc`, and one page a module."""
    modules = {
        module: path for room in ROOMS for path in notebooks(room) if (module := module_of(path))
    }
    entry = "{}\n   {}\n"
    face, entries = [], []
    for name in atesc.__all__:
        value = getattr(atesc, name)
        face.append(entry.format(f":ref:`{name} <face-{name}>`", summary(value)))
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        options = "   :no-index:\n" + ("   :members:\n" if kind == "autoclass" else "")
        entries.append(
            f".. _face-{name}:\n\n{heading(name, '-')}.. {kind}:: atesc.{name}\n{options}"
        )
    write("api/atesc.rst", heading("import atesc") + "\n".join([*face, "", *entries]))
    contents, listed = [], []
    for module, path in modules.items():
        explained = (
            f"Explained in the notebook :doc:`/{place(path).with_suffix('').as_posix()}`.\n\n"
        )
        auto = f".. automodule:: {module}\n   :members:\n"
        write(f"api/{module}.rst", heading(module) + explained + auto)
        contents.append(module)
        listed.append(entry.format(f":doc:`{module}`", summary(import_module(module))))
    index = [
        heading("Reference"),
        "From docstrings. The names of the package itself are in :doc:`import atesc <atesc>`.\n",
        heading("Modules", "-"),
        *listed,
        ".. toctree::\n   :hidden:\n",
        *(f"   {name}" for name in contents),
    ]
    write("api/index.rst", "\n".join(index) + "\n")


def gather() -> list[str]:
    """All sources of the site.

    Returns:
        the broken links of notebooks and documents, a line each
    """
    shutil.rmtree(SOURCE, ignore_errors=True)
    broken: list[str] = []
    rooms = {room: gather_room(room, broken) for room in ROOMS}
    shutil.copytree(ROOT / "nbs/images", SOURCE / "images")
    gather_reference()
    for name in PAGES:
        write(name, linked((ROOT / name).read_text(encoding="utf-8"), ROOT / name, broken))
    modules = [entry for room in list(ROOMS)[2:] for entry in rooms[room]]
    contents = [
        toctree([*rooms["story"], *rooms["experiments"], "explore"]),
        toctree(modules, ":caption: Modules"),
        toctree(["api/atesc", "api/index"], ":caption: Reference"),
        toctree([Path(name).stem for name in PAGES], ":caption: Project"),
    ]
    gather_notebook(ROOT / "nbs/index.ipynb", broken, "\n".join(contents))
    gather_notebook(ROOT / "nbs/explore.ipynb", broken)
    return broken


def build() -> list[str]:
    """The site from its sources.

    Returns:
        Sphinx's warnings
    """
    from sphinx.application import Sphinx  # of the extra `docs`; the tests do without

    shutil.rmtree(HTML, ignore_errors=True)
    warnings = io.StringIO()
    app = Sphinx(
        SOURCE, ROOT / "docs", HTML, SITE / "doctrees", "html", status=None, warning=warnings
    )
    app.build()
    return warnings.getvalue().splitlines()


class Links(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()  # without a click
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One element."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and "href" in given and given.get("rel") != "canonical":
            self.loaded.add(given["href"])
        elif "src" in given and tag in ("img", "script", "iframe", "source"):
            self.loaded.add(given["src"])


def check_site(folder: Path) -> Iterator[str]:
    """Broken internal links of a built site, and what it would load from elsewhere.

    Args:
        folder: of the HTML files

    Yields:
        a line for each
    """
    pages = {path.resolve(): Links(path.read_text("utf-8")) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        name = path.relative_to(folder.resolve()).as_posix()
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    yield f"{name}: {link} is loaded from elsewhere"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{name}: {link} does not exist"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name}: {link} has no such place"


def main() -> int:
    """Gather, build, check."""
    start = time.monotonic()
    broken = gather()
    warnings = build()
    for warning in warnings:
        print(warning, file=sys.stderr)
    broken += check_site(HTML)
    for line in broken:
        print(f"broken link: {line}", file=sys.stderr)
    count = sum(1 for _ in HTML.rglob("*.html"))
    print(
        f"{count} pages in {time.monotonic() - start:.0f} s, {len(warnings)} warnings, "
        f"{len(broken)} broken links: {HTML / 'index.html'}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
