"""The six chapters: they run, they show pictures, and they keep to their size."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest
from figures import has_image

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "nbs/story").glob("*.ipynb"))
NAMES = "1_the_trap 2_why 3_the_split 4_the_escape 5_decoys 6_your_teacher".split()


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def pictures(path):
    return sum(has_image(cell.outputs) for cell in cells(path, "code"))


def test_there_are_six_chapters_with_two_dozen_pictures():
    assert [path.stem for path in CHAPTERS] == NAMES
    assert sum(map(pictures, CHAPTERS)) >= 24


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_the_size_of_a_lecture(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    lines = [line for cell in cells(path, "code") for line in cell.source.splitlines()]
    assert 3 <= pictures(path) <= 8
    assert len([line for line in lines if line.strip() and line.strip()[0] != "#"]) <= 230
    assert 600 <= len(text.split()) <= 3000
    assert re.search(r"Runs in about \d+ s on 2 cores", text)
    for heading in ("Turn the dial", "What we learnt", "What is open", "Exercises"):
        assert f"\n## {heading}\n" in f"\n{text}\n"
    assert "**The question.**" in text and re.search(r"^2\. ", text.split("## Exercises")[1], re.M)


def test_the_first_chapter_answers_three_questions():
    text = "\n".join(cell.source for cell in cells(CHAPTERS[0], "markdown"))
    learnt = text.split("## What we learnt")[1].split("##")[0]
    for question in ("What is the trap?", "How is it measured?", "Does it concern my model?"):
        assert f"**{question}**" in learnt


def test_no_plumbing_before_the_first_picture_of_the_trap():
    """Nothing of files, checks and records, but for reading two teachers and the records."""
    before = []
    for cell in cells(CHAPTERS[0], "code"):
        before.append(cell.source)
        if has_image(cell.outputs) and "mislead" in cell.source:
            break
    assert not re.findall(r"atesc\.inside\.(?!runtime import seeded)", "\n".join(before))


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_runs(path, tmp_path):
    """With short runs. The committed copy shows runs of the length that it states."""
    declared = papermill.inspect_notebook(str(path))
    parameters = {"iterations": 4, **({"out": str(tmp_path)} if "out" in declared else {})}
    papermill.execute_notebook(
        str(path),
        str(tmp_path / path.name),
        parameters,
        kernel_name="python3",
        progress_bar=False,
        cwd=str(path.parent),
    )
    figures = [c for c in cells(tmp_path / path.name, "code") if has_image(c.outputs)]
    assert len(figures) == pictures(path)
