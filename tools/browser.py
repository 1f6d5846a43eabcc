"""browser.py NOTEBOOK... [-p NAME VALUE] [--shots FOLDER]: notebooks in a real browser.

Each notebook is opened in JupyterLab and run cell by cell with Shift+Enter, in a copy of nbs/.
Reported are its seconds, the cells with an error, and the cells that draw a figure and show none.
-p sets a parameter of every notebook that declares it. Screenshots of figures and errors go to
FOLDER. Debian's chromium, headless, is driven over the DevTools protocol: it needs
`apt-get install chromium`, or CHROMIUM=PATH. JupyterLab listens on loopback only.
"""

import argparse
import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import websocket
from figures import draws, has_image
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from atesc.app.run import declared_parameters, parse_parameters

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds for a start or an answer: JupyterLab is slow on a busy machine
PANEL = "[...jupyterapp.shell.widgets('main')].find(widget => widget.sessionContext)"
READY = f"""!!window.jupyterapp && !!{PANEL}?.content?.widgets?.length &&
{PANEL}.sessionContext.session?.kernel?.status == 'idle'"""
CELL = f"{PANEL}.content.widgets[%d]"
SELECT = """(() => {
  const notebook = PANEL.content;
  notebook.activeCellIndex = %d;
  notebook.deselectAll();
  notebook.mode = 'command';
  notebook.node.focus();
  return notebook.scrollToItem(%d, 'smart');
})()""".replace("PANEL", PANEL)
DONE = """(() => {
  const cell = CELL, kernel = PANEL.sessionContext.session?.kernel;
  if (!kernel || ['dead', 'autorestarting'].includes(kernel.status)) return 'dead';
  return cell.model.executionCount !== null && kernel.status == 'idle' ? 'done' : '';
})()""".replace("CELL", CELL).replace("PANEL", PANEL)
OUTPUTS = f"{CELL}.model.outputs.toJSON()"
DRAWN = """[...CELL.node.querySelectorAll('.jp-OutputArea img')]
.filter(image => image.complete && image.naturalWidth > 0).length""".replace("CELL", CELL)


class Tab:
    """A page of the browser."""

    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=PATIENCE)
        self.sent = 0

    def call(self, method: str, **parameters: Any) -> dict:
        """One command of the DevTools protocol, and its result."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.sent:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, unlike: Any = None, seconds: float = PATIENCE) -> Any:
        """The expression's value, as soon as it is true and not `unlike`."""
        until = time.monotonic() + seconds
        while not (value := self.ask(script)) or value == unlike:
            if time.monotonic() > until:
                page = self.ask("document.body.innerText")
                raise TimeoutError(f"still waiting for {script}; the page says: {page[:2000]}")
            time.sleep(0.01)
        return value

    def press_shift_enter(self) -> None:
        """Both keys, down and up."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 8}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def save(self, path: Path) -> None:
        """A screenshot."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def running(*command: Any, **settings: Any) -> Iterator[subprocess.Popen]:
    """A process for the time of a block."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([str(part) for part in command], **silent, **settings)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def patiently(what):
    """The result of `what`, which may fail for a while."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return what()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.2)


@contextmanager
def jupyterlab(folder: Path) -> Iterator[Callable[[str], Tab]]:
    """JupyterLab on a folder, and a browser; a function that opens a notebook in a tab."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    program = program or shutil.which("chromium-browser")
    if not program:
        sys.exit("no chromium: apt-get install chromium, or set CHROMIUM=PATH")
    own = Path(tempfile.mkdtemp())
    (own / "config/labconfig").mkdir(parents=True)
    (own / "config/labconfig/page_config.json").write_text(  # no question about news
        '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    lab = f"--no-browser --allow-root --expose-app-in-browser --ip=127.0.0.1 --port={port}".split()
    lab += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    lab += [f"--ServerApp.root_dir={folder}"]
    chrome = "--headless=new --disable-gpu --disable-dev-shm-usage --no-first-run".split()
    chrome += ["--remote-debugging-port=0", "--window-size=1250,1200"]
    chrome += [f"--user-data-dir={own / 'profile'}", *["--no-sandbox"] * (os.geteuid() == 0)]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(own / "config")}
    with (
        running(sys.executable, "-m", "jupyterlab", *lab, env=environment),
        running(program, *chrome, "about:blank"),
    ):
        address = f"http://127.0.0.1:{port}"
        patiently(lambda: urllib.request.urlopen(f"{address}/api?token={token}"))
        tools = patiently((own / "profile/DevToolsActivePort").read_text).split()[0]

        def open_notebook(place: str) -> Tab:
            page = quote(f"{address}/doc/tree/{place}?token={token}", safe="")
            new = urllib.request.Request(f"http://127.0.0.1:{tools}/json/new?{page}", method="PUT")
            target = json.load(patiently(lambda: urllib.request.urlopen(new)))
            time.sleep(10)  # a question to a page that is being replaced is never answered
            tab = Tab(target["webSocketDebuggerUrl"])
            tab.wait(READY)
            return tab

        yield open_notebook
    shutil.rmtree(own, ignore_errors=True)


def prepare(path: Path, parameters: list[tuple[str, str]]) -> list[dict]:
    """Clear a notebook's outputs and set its parameters, in place; returns its cells."""
    notebook = load_notebook_node(str(path))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    declared = declared_parameters(path)
    if given := parse_parameters(path, [pair for pair in parameters if pair[0] in declared]):
        notebook = parameterize_notebook(notebook, given)
    nbformat.write(notebook, path)
    return notebook.cells


def run_cell(tab: Tab, index: int, seconds: float) -> list[dict]:
    """Run a code cell with Shift+Enter; returns its outputs."""
    tab.ask(SELECT % (index, index))
    tab.press_shift_enter()
    if tab.wait(DONE % index, seconds=seconds) == "dead":
        return [{"output_type": "error", "ename": "DeadKernel", "evalue": "the kernel died"}]
    return tab.ask(OUTPUTS % index)


def check_notebook(tab: Tab, cells: list[dict], seconds: float, shots: Path | None) -> list[str]:
    """Run all cells of the notebook that is open.

    Args:
        tab: where it is open
        cells: of the notebook
        seconds: that a cell may take
        shots: beginning of the names of screenshots; None: none

    Returns:
        what is wrong, one line each
    """
    wrong: list[str] = []
    for index, cell in enumerate(cells):
        if cell["cell_type"] != "code" or not cell["source"].strip():
            continue
        outputs = run_cell(tab, index, seconds)
        errors = [out for out in outputs if out["output_type"] == "error"]
        wrong += [f"cell {index}: {e['ename']}: {e['evalue']}"[:300] for e in errors]
        if has_image(outputs) and not tab.ask(DRAWN % index):
            time.sleep(2)
        shown = has_image(outputs) and tab.ask(DRAWN % index)
        if draws(cell["source"]) and not shown:
            wrong.append(f"cell {index} shows no figure: {cell['source'].strip()[:100]!r}")
        if shots and (errors or has_image(outputs)):
            tab.ask(f"{CELL % index}.outputArea.node.scrollIntoView({{block: 'center'}})")
            time.sleep(0.5)
            tab.save(shots.with_name(f"{shots.name}-{index:02d}.png"))
        if errors:
            break
    return wrong


def main() -> None:
    """Run the notebooks; exit code 1 if anything is wrong."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    options.add_argument("-p", dest="parameters", **pair)
    options.add_argument("--shots", type=Path)
    options.add_argument("--seconds", type=float, default=1800, help="a cell may take")
    given, bad = options.parse_args(), 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns("runs"))
        for shared in ("results", "data"):
            (folder / shared).symlink_to(ROOT / shared)
        with jupyterlab(folder) as open_notebook:
            for notebook in given.notebooks:
                place = notebook.resolve().relative_to(ROOT)
                cells = prepare(folder / place, [tuple(pair) for pair in given.parameters])
                shots = given.shots and given.shots / place.stem
                tab = open_notebook(str(place))
                began = time.monotonic()
                wrong = check_notebook(tab, cells, given.seconds, shots)
                took = time.monotonic() - began
                bad += bool(wrong)
                print(f"{place}: {took:.0f} s, {'; '.join(wrong) or 'fine'}", flush=True)
                tab.ask(f"{PANEL}.sessionContext.shutdown()")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
