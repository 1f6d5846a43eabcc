"""README.md from nbs/index.ipynb: nbconvert, with the inputs of tagged cells left out and paths seen from the top level."""
from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parents[1]


def render() -> str:
    config = Config()
    config.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    config.TagRemovePreprocessor.remove_input_tags = {"remove_input"}
    body, _ = MarkdownExporter(config=config).from_filename(str(ROOT / "nbs/index.ipynb"))
    return body.replace("](images/", "](nbs/images/").replace("](../", "](").strip() + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(render(), encoding="utf-8")
