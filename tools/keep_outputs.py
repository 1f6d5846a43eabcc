"""keep_outputs.py EXECUTED SOURCE: copy the outputs of an executed notebook into its source.

Progress widgets, their state, lines of progress ("... ") and warnings are left out. The sources of
all cells must be equal. The folder of EXECUTED is written as OUT.
"""

import re
import sys
from pathlib import Path

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"


def keep_outputs(executed_path: str, source_path: str) -> None:
    """Copy the outputs of an executed notebook into its source, in place."""
    executed, source = (nbformat.read(path, as_version=4) for path in (executed_path, source_path))
    done = [
        cell
        for cell in executed.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    if [cell.source for cell in done] != [cell.source for cell in source.cells]:
        sys.exit(f"{executed_path} was made from another version of {source_path}: run it again")
    folder = str(Path(executed_path).resolve().parent)
    for old, new in zip(source.cells, done):
        if old.cell_type == "code":
            old.outputs = [
                out
                for out in new.outputs
                if WIDGET not in out.get("data", {}) and out.get("name") != "stderr"
            ]
            for out in old.outputs:
                if "text" in out:
                    out.text = re.sub(r"(?m)^\.\.\. .*\n", "", out.text).replace(folder, "OUT")
            old.outputs = [out for out in old.outputs if out.get("text", "shown")]
    source.metadata.pop("widgets", None)
    nbformat.write(source, source_path)


if __name__ == "__main__":
    keep_outputs(*sys.argv[1:])
