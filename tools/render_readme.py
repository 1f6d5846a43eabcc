"""README.md from nbs/index.ipynb, and its figures from the committed records.

Run by `make notebooks`.
"""

from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

from atesc.study.plots import plot_curves
from atesc.study.presets import STUDY
from atesc.study.query import committed

ROOT = Path(__file__).parents[1]


def render() -> str:
    """The README's text: inputs of tagged cells left out, paths as seen from the top level."""
    config = Config()
    config.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    config.TagRemovePreprocessor.remove_input_tags = {"remove_input"}
    body, _ = MarkdownExporter(config=config).from_filename(str(ROOT / "nbs/index.ipynb"))
    return body.replace("](images/", "](nbs/images/").replace("](../", "](").strip() + "\n"


def draw() -> None:
    """nbs/images/curves.png; the sheet of images itself comes from the run of seed 0."""
    figure = plot_curves(committed("ood_trap"), levels={"student": STUDY.split()})
    figure.savefig(ROOT / "nbs/images/curves.png", metadata={"Software": None})


if __name__ == "__main__":
    draw()
    (ROOT / "README.md").write_text(render(), encoding="utf-8")
