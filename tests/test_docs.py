"""The site of `make docs`: what becomes of links, and that a broken one is found."""

import nbformat
import pytest

import docs

PAGE = docs.ROOT / "nbs/method/01_splitter.ipynb"


@pytest.mark.parametrize(
    "link, there",
    {
        "02_rivals.ipynb": "../method/02_rivals.ipynb",
        "../experiments/study.ipynb#The-students?": "../experiments/study.ipynb#the-students",
        "../teachers": "../teachers/index.md",
        "../../CONTRIBUTING.md": "../CONTRIBUTING.md",
        "#The-test": "#the-test",
        "https://arxiv.org/abs/2507.04119": "https://arxiv.org/abs/2507.04119",
    }.items(),
)
def test_links_lead_to_the_page_of_the_site(link, there):
    broken = []
    assert docs.linked(f"See [it]({link}).", PAGE, broken) == f"See [it]({there})."
    assert not broken


def test_a_link_of_a_notebook_to_nothing_is_reported():
    broken = []
    assert docs.linked("See [it](nowhere.ipynb).", PAGE, broken) == "See it."
    assert broken == ["nbs/method/01_splitter.ipynb: nowhere.ipynb does not exist"]


def test_directives_and_hidden_cells_are_left_out():
    code = ["#| default_exp a", "#| export\nx = 1", "#| hide\ny = 2", "z = 3  #| no directive"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in code])
    shown = docs.shown(notebook, PAGE, [])
    assert [cell.source for cell in shown.cells] == ["x = 1", "z = 3  #| no directive"]


def test_the_check_of_the_site_finds_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text(
        "<a href='b.html#there'></a><a href='b.html#gone'></a><a href='c.html'></a><a href='#'></a>"
        "<a href='https://example.org'></a><script src='https://example.org/s.js'></script>"
    )
    (tmp_path / "b.html").write_text("<h1 id='there'></h1><img src='data:image/png;base64,AA=='>")
    assert list(docs.check_site(tmp_path)) == [
        "a.html: b.html#gone has no such place",
        "a.html: c.html does not exist",
        "a.html: https://example.org/s.js is loaded from elsewhere",
    ]


@pytest.mark.parametrize(
    "broken", [[], ["a.ipynb: b.ipynb does not exist"]], ids=["whole", "broken"]
)
def test_a_broken_link_fails_the_build(broken, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(docs, "gather", lambda: list(broken))
    monkeypatch.setattr(docs, "build", lambda: [])
    monkeypatch.setattr(docs, "HTML", tmp_path)
    assert docs.main() == len(broken)
    assert capsys.readouterr().err == "".join(f"broken link: {line}\n" for line in broken)


def test_every_folder_of_notebooks_is_in_the_site():
    folders = {path.parent.name for path in (docs.ROOT / "nbs").glob("*/*.ipynb")}
    assert folders <= set(docs.ROOMS)
