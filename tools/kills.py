"""kills.py N: kill N runs with SIGKILL at random moments, resume each, and compare.

The outcome must be that of a run that was left alone.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from atesc.inside.checkpoint import fingerprint
from atesc.inside.records import load_records
from atesc.study.grid import Cell, run_grid
from atesc.study.presets import BASELINES, load_preset

OBJECTIVES = ("ntl-plain", "ntl-ckd", "ntl-atesc", "ntl-decoy")
TASK = "debug->debug_ood"


def settings():
    """The debug preset, long enough to be killed in the middle."""
    preset = load_preset("debug", iterations=40, rounds=8)
    line_up = replace(preset.decoy.decoy.line_up, steps=10)
    return replace(
        preset,
        curve_points=8,
        teacher=replace(preset.teacher, epochs=20),
        decoy=replace(preset.decoy, decoy=replace(preset.decoy.decoy, line_up=line_up)),
    )


def run(folder: Path, cell: Cell) -> None:
    """One student, its record with fingerprints of student and teacher."""

    def weights(teachers, record, run):
        return {
            "student": fingerprint(run.result.student.state_dict().values()),
            "weights": fingerprint(teachers.ntl.state_dict().values()),
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_grid("kills", settings(), [cell], folder, also=weights)


def start(folder: Path, cell: Cell) -> int:
    """The same in a process of its own, which is all that SIGKILL hits."""
    child = os.fork()
    if child:
        return child
    try:
        os.close(2)
        run(folder, cell)
        os._exit(0)
    except BaseException:
        os._exit(1)


def outcome(folder: Path) -> tuple[int, list[dict]]:
    """Lines of the file, and what each says but for the time."""
    lines = (folder / "records.jsonl").read_bytes().count(b"\n")
    return lines, [
        {k: v for k, v in r.items() if k not in ("seconds", "finished")}
        for r in load_records(folder)
    ]


def trial(cell: Cell, seconds: float, folder: Path) -> tuple[str, bool]:
    """Kill a run after some seconds and start it again.

    Returns:
        what was on disk when it was killed, and whether the second run ended well
    """
    child = start(folder, cell)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    checkpoints = [file for file in folder.rglob("*.checkpoint") if not file.name.startswith(".")]
    found = (
        "its end"
        if not killed
        else "a student's"
        if any(f.parent.name == "checkpoints" for f in checkpoints)
        else "a teacher's"
        if checkpoints
        else "a teacher"
        if list(folder.glob("teachers/*.safetensors"))
        else "nothing"
    )
    _, status = os.waitpid(start(folder, cell), 0)
    return found, os.WEXITSTATUS(status) == 0 and not [file for file in folder.rglob("*.part")]


def main(kills: int, seed: int = 0) -> dict[str, int]:
    """Kill and resume, each baseline and objective in turn; returns counts."""
    torch.set_num_threads(1)
    rng, counts = (
        random.Random(seed),
        {
            "killed": 0,
            "went on": 0,
            "from a checkpoint": 0,
            "same": 0,
            "records lost or doubled": 0,
        },
    )
    cells = [
        Cell(TASK, 0, baseline, objective) for baseline in BASELINES for objective in OBJECTIVES
    ]
    known: dict[Cell, tuple[float, list[dict]]] = {}
    number = 0
    while counts["killed"] < kills:
        cell, number = cells[number % len(cells)], number + 1
        with tempfile.TemporaryDirectory() as name:
            if cell not in known:
                began = time.perf_counter()
                os.waitpid(start(Path(name) / "whole", cell), 0)
                known[cell] = time.perf_counter() - began, outcome(Path(name) / "whole")[1]
            seconds, whole = known[cell]
            moment = rng.uniform(0, seconds)
            found, went_on = trial(cell, moment, Path(name) / "parts")
            lines, parts = outcome(Path(name) / "parts") if went_on else (0, [])
            if found == "its end":  # it was faster than the first time
                continue
            counts["killed"] += 1
            counts["went on"] += went_on
            counts["from a checkpoint"] += "'s" in found
            counts["same"] += parts == whole and len(whole) == 1
            counts["records lost or doubled"] += lines != 1
            print(
                f"{cell.baseline:5s} {cell.student:9s} killed after {moment:4.1f} of "
                f"{seconds:4.1f} s, went on from {found}: "
                f"{'same' if parts == whole else 'DIFFERENT'}",
                flush=True,
            )
    return counts


if __name__ == "__main__":
    print(
        json.dumps(
            main(
                int(sys.argv[1]) if len(sys.argv) > 1 else 20,
                int(sys.argv[2]) if len(sys.argv) > 2 else 0,
            )
        )
    )
