"""README.md from nbs/index.ipynb, and its figures from the committed records. Run by `make notebooks`."""

from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

from atesc.inside.records import load_records
from atesc.study.presets import PRESETS
from atesc.study.report import plot_classes, plot_curves, plot_grid, plot_radius
from atesc.study.tables import committed

ROOT = Path(__file__).parents[1]


def render() -> str:
    """The README's text: inputs of tagged cells left out, paths as seen from the top level."""
    config = Config()
    config.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    config.TagRemovePreprocessor.remove_input_tags = {"remove_input"}
    body, _ = MarkdownExporter(config=config).from_filename(str(ROOT / "nbs/index.ipynb"))
    return body.replace("](images/", "](nbs/images/").replace("](../", "](").strip() + "\n"


def draw() -> None:
    """nbs/images/*.png; the sheet of images itself comes from the run of seed 0."""
    records = load_records(ROOT / "results/ood_trap")
    for name, plot in (("curves", plot_curves), ("classes", plot_classes), ("radius", plot_radius)):
        plot(records).savefig(ROOT / f"nbs/images/{name}.png", metadata={"Software": None})
    for kind in ("close-set", "open-set", "backdoor"):
        name = kind.replace("-", "_")
        figure = plot_grid(committed(name, "digits"), PRESETS["digits"].tasks_of(kind))
        figure.savefig(ROOT / f"nbs/images/{name}.png", metadata={"Software": None})


if __name__ == "__main__":
    draw()
    (ROOT / "README.md").write_text(render(), encoding="utf-8")
