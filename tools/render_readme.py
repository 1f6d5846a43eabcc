"""README.md from nbs/index.ipynb, and its figure from the committed records.

Run by `make notebooks`.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from nbconvert import MarkdownExporter
from traitlets.config import Config

from atesc.study.plots import LOOKS, STYLE, StyledFigure, draw_dots, limit_percent
from atesc.study.query import committed, select, title_of

ROOT = Path(__file__).parents[1]
SHOWN = {  # student -> title
    "sl-plain": "no trap\n(SL teacher)",
    "ntl-plain": "trap\n(NTL, plain KD)",
    "ntl-decoy": "escape\n(NTL, DecoyEscape)",
}


def render() -> str:
    """The README's text: cells and inputs with a tag left out, paths as seen from the top level."""
    config = Config()
    config.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    config.TagRemovePreprocessor.remove_input_tags = {"remove_input"}
    config.TagRemovePreprocessor.remove_cell_tags = {"index_only"}
    body, _ = MarkdownExporter(config=config).from_filename(str(ROOT / "nbs/index.ipynb"))
    body = re.sub(r"\]\((?!\w+:|\.\./|#)", "](nbs/", body).replace("](../", "](")
    return re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def draw() -> None:
    """nbs/images/trap.png: real and synthetic images, and the students on record."""
    records = committed("ood_trap")
    images = plt.imread(ROOT / "nbs/images/images.png")
    with plt.rc_context(STYLE):
        figure = StyledFigure(figsize=(9, 2.7))
        left, *axes = figure.subplots(1, 3, width_ratios=[3, 1, 1])
        left.imshow(images)
        left.set_axis_off()
        for axis, measure in zip(axes, ("iacc", "mislead")):
            for row, (look, student) in enumerate(zip(LOOKS, SHOWN)):
                values = [record[measure] for record in select(records, student=student)]
                draw_dots(axis, {row: values}, 0.3, **look)
            axis.set(title=title_of(measure), ylim=(len(SHOWN) - 0.5, -0.5))
            axis.set_yticks(range(len(SHOWN)), [])
            limit_percent(axis, "x", title_of(measure))
        axes[0].set_yticks(range(len(SHOWN)), SHOWN.values())
    figure.savefig(ROOT / "nbs/images/trap.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    draw()
    (ROOT / "README.md").write_text(render(), encoding="utf-8")
