"""explore_page.py [--runs DIR] [--screenshot PNG] [--seconds S]: the page in a real browser.

Sliders of nbs/explore.ipynb are dragged with the mouse. The picture and the split must change, and
the best answer must come within S seconds (a machine may have other work). Without --runs, a run of
the debug preset is made first. Needs `apt-get install chromium`, or CHROMIUM=PATH.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import ROOT, Tab, jupyterlab

RUN = "import sys; from atesc.app.command import main; sys.exit(main())"
PICTURE = """(() => {
  const image = document.querySelector('img.widget-image');
  if (!image || !image.complete || !image.naturalWidth) return '';
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvas.toDataURL();
})()"""
NOTE = "[...document.querySelectorAll('.widget-html-content')].map(x => x.innerText).join(' ')"
CONTROL = """[...document.querySelectorAll('.widget-inline-hbox')]
.find(x => x.querySelector('.widget-label').innerText == %s)"""
BOXES = """(() => {
  const control = %s;
  return ['.noUi-handle', '.noUi-base']
    .map(part => control.querySelector(part).getBoundingClientRect().toJSON());
})()"""
CHOOSE = """(() => {
  const select = %s.querySelector('select');
  select.selectedIndex = [...select.options].findIndex(o => o.text.startsWith(%s));
  select.dispatchEvent(new Event('change', {bubbles: true}));
})()"""


def drag(tab: Tab, name: str, share: float) -> None:
    """Take a slider's handle with the mouse and let it go at a share of its length."""
    handle, base = tab.ask(BOXES % (CONTROL % json.dumps(name)))
    start, end = handle["x"] + handle["width"] / 2, base["x"] + share * base["width"]
    for kind, x in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
        mouse = {"button": "left", "buttons": 1, "clickCount": 1}
        y = handle["y"] + handle["height"] / 2
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **mouse)


def choose(tab: Tab, name: str, option: str) -> None:
    """Choose from a dropdown by (the beginning of) an option's text."""
    tab.ask(CHOOSE % (CONTROL % json.dumps(name), json.dumps(option)))


class Moves:
    """Moves of the controls, each of which must change the picture."""

    def __init__(self, tab: Tab):
        self.tab, self.seconds = tab, []
        self.picture = tab.wait(PICTURE)

    def make(self, what: str, move, *args) -> int:
        """Make a move; returns how many images are fragile after it."""
        began = time.monotonic()
        move(self.tab, *args)
        self.tab.wait(PICTURE, unlike=self.picture)
        self.seconds.append(time.monotonic() - began)
        state = None
        while state != (state := (self.tab.ask(NOTE), self.tab.ask(PICTURE))):
            time.sleep(1)  # a drag may be answered in two steps
        self.picture = state[1]
        fragile = int(re.search(r"(\d+) of \d+ fragile", state[0])[1])
        print(f"{what:28s} picture changed after {self.seconds[-1]:.2f} s, {fragile} fragile")
        return fragile


def check(tab: Tab) -> list[float]:
    """Run the notebook and move every kind of control; returns the seconds of the answers."""
    tab.ask("void jupyterapp.commands.execute('notebook:run-all-cells')")
    moves = Moves(tab)
    tab.ask("document.querySelector('img.widget-image').scrollIntoView({block: 'end'})")
    few = moves.make("eps to a tenth of the scale", drag, "eps, 1/255", 0.1)
    many = moves.make("eps to its end", drag, "eps, 1/255", 1.0)
    assert few < many, "a larger eps flips more images"
    moves.make("first point of training", drag, "iteration", 0.0)
    moves.make("last point of training", drag, "iteration", 1.0)
    moves.make("SL teacher", choose, "teacher", "SL")
    moves.make("NTL teacher", choose, "teacher", "NTL")
    moves.make("the other rule", choose, "fragile if", "first-order")
    low = moves.make("threshold to its start", drag, "threshold ×", 0.0)
    high = moves.make("threshold to its end", drag, "threshold ×", 1.0)
    assert low < high, "a higher threshold makes more images fragile"
    moves.make("back to PGD", choose, "fragile if", "PGD")
    moves.make("eps to the middle", drag, "eps, 1/255", 4 / 7)
    return sorted(moves.seconds)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=Path)
    options.add_argument("--screenshot", type=Path, default=Path("runs/explore.png"))
    options.add_argument("--seconds", type=float, default=0.5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "nbs").mkdir()
        shutil.copy(ROOT / "nbs/explore.ipynb", folder / "nbs")
        if given.runs:
            (folder / "runs").symlink_to(given.runs.resolve(strict=True))
        else:
            command = [sys.executable, "-c", RUN, "run", "ood_trap", "--preset", "debug"]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with jupyterlab(folder) as open_notebook:
            tab = open_notebook("nbs/explore.ipynb")
            try:
                seconds = check(tab)
            finally:
                tab.save(given.screenshot)
    best, median = seconds[0], seconds[len(seconds) // 2]
    print(f"{len(seconds)} moves: {best:.2f} s at best, {median:.2f} s in the median")
    print(f"see {given.screenshot}")
    assert best < given.seconds, f"the best answer took {best:.2f} s"


if __name__ == "__main__":
    main()
