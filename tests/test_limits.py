"""A full disk, a folder without permission, a lack of memory: one message, and nothing is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atesc.inside import files
from atesc.inside.archive import write_pt
from atesc.inside.errors import OutOfMemory
from atesc.inside.files import StorageError, lock_of, run_dir, writable_dir, write_file
from atesc.inside.records import append_records, load_records
from atesc.method.decoys import DecoyConfig
from atesc.method.distill import distill
from atesc.method.objectives import DecoyEscape, PlainKD
from atesc.method.run import DistillConfig
from atesc.method.traps import LineUpConfig
from atesc.synthesis.dfq import DFQ, DFQConfig
from atesc.synthesis.generator import DCGANGenerator
from atesc.teachers.networks import SmallVGG
from atesc.teachers.saved import save_model
from atesc.teachers.training import TeacherConfig, train_sl

PYTHON = [sys.executable, "-c"]


class Full:
    """A file on a disk with room for a given number of bytes."""

    def __init__(self, path, mode, room):
        self.file, self.room = open(path, mode), room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.file.write(bytes(content)[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")


WRITERS = {
    "file": lambda path: write_file(path, b"new" * 100),
    "records": lambda path: append_records(path, [{"seed": 1, "text": "x" * 300}]),
    "weights": lambda path: save_model(SmallVGG("8 M 8", 4), path.with_suffix(".safetensors")),
    "tensors": lambda path: write_pt(path, {"x": torch.zeros(100)}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_on_a_full_disk_the_old_file_stays(writer, tmp_path, monkeypatch):
    path = tmp_path / "here"
    old = path.with_suffix(".safetensors") if writer == "weights" else path
    old.write_bytes(b'{"seed": 0}\n')
    monkeypatch.setattr(files, "open", lambda path, mode: Full(path, mode, room=10), raising=False)
    with pytest.raises(
        StorageError, match="here.* cannot be written to: the disk is full; free some space"
    ):
        WRITERS[writer](path)
    assert old.read_bytes() == b'{"seed": 0}\n'
    assert {file.name for file in tmp_path.iterdir()} <= {old.name, lock_of(old).name}, (
        "no part is left"
    )


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounts a file system, as root"
)
def test_a_disk_that_is_really_full(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        append_records(tmp_path / "records.jsonl", [{"seed": 0}])
        with pytest.raises(StorageError, match="the disk is full"):
            append_records(tmp_path / "records.jsonl", [{"seed": 1, "text": "x" * 100_000}])
        with pytest.raises(StorageError, match="the disk is full"):
            save_model(SmallVGG("64 M 64", 4), tmp_path / "net.safetensors")
        assert [record["seed"] for record in load_records(tmp_path)] == [0]
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        for refused in (
            lambda: writable_dir(tmp_path / "new"),
            lambda: append_records(tmp_path / "records.jsonl", [{"seed": 2}]),
            lambda: run_dir(tmp_path),
        ):
            with pytest.raises(StorageError, match="the disk is read-only"):
                refused()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_stops_a_run_that_can_go_on(teachers, tmp_path, monkeypatch):
    """The checkpoint of iteration 10 stays complete when that of iteration 20 does not fit."""

    def run(path):
        dfq = DFQ(DCGANGenerator(size=8, latent_dim=8, width=8), DFQConfig(batch_size=16))
        return distill(
            teachers.ntl,
            SmallVGG("8 M 8", 4),
            synthesizer=dfq,
            objective=PlainKD(),
            iterations=30,
            config=DistillConfig(student_steps=1),
            checkpoint=path,
            checkpoint_every=10,
        )

    whole, path, saved = run(None), tmp_path / "run", []

    def room(path, mode):
        saved.append(path)
        return Full(path, mode, room=10**9 if len(saved) == 1 else 1000)

    monkeypatch.setattr(files, "open", room, raising=False)
    with pytest.raises(StorageError, match="the disk is full"):
        run(path)
    monkeypatch.undo()
    assert len(saved) == 2
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            whole.student.state_dict().values(), run(path).student.state_dict().values()
        )
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, as root")
def test_no_permission(tmp_path):
    (tmp_path / "of root").mkdir(mode=0o755)
    for folder in [tmp_path, *tmp_path.parents][:-2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    code = """if True:
        import os, sys
        from atesc.inside.files import StorageError, run_dir, writable_dir, write_file
        from atesc.inside.records import append_records
        os.setuid(65534)
        for refused in (
            lambda p: writable_dir(p + "/new"),
            run_dir,
            lambda p: write_file(p + "/x", "x"),
            lambda p: append_records(p + "/records.jsonl", [{}]),
        ):
            try:
                refused(sys.argv[1])
            except StorageError as error:
                print(error)
        """
    done = subprocess.run([*PYTHON, code, tmp_path / "of root"], capture_output=True, text=True)
    advice = "no permission to write there; write elsewhere, or change the permissions"
    assert done.stdout.count(advice) == 4, done.stdout + done.stderr
    assert not list((tmp_path / "of root").iterdir())


@pytest.mark.parametrize(
    "path, message",
    [
        ("/proc/atesc", "cannot be written to"),
        ("/dev/null/runs", "out '/dev/null/runs' .*a part of the path is a file"),
    ],
)
def test_folders_that_cannot_be_made(path, message):
    for make in (writable_dir, run_dir):
        with pytest.raises(StorageError, match=message):
            make(path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError,
        match="out .*file' cannot be written to: a file of that name is in the way of a folder",
    ):
        run_dir(tmp_path / "file")


@pytest.mark.slow
def test_two_runs_into_one_folder(tmp_path):
    """The second run is refused with one line, unless the first one is dead."""
    hold = """if True:
        import sys
        from atesc.inside.files import run_dir
        run_dir(sys.argv[1])
        print("here", flush=True)
        sys.stdin.read()
        """
    first = subprocess.Popen(
        [*PYTHON, hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "here\n"
    command = [
        *PYTHON,
        "import sys; from atesc.app.command import main; sys.exit(main())",
        "run",
        "ood_trap",
        "--preset",
        "debug",
        "--out",
        tmp_path,
        "-p",
        "iterations",
        "1",
    ]
    refused = subprocess.run(command, capture_output=True, text=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (
        refused.returncode == 2
        and "is in use by another run" in refused.stderr
        and len(refused.stderr.splitlines()) == 1
    ), refused.stderr
    assert not list(tmp_path.rglob("records.jsonl"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HUGE = 10**12  # images: more than fit into any memory


def big(objective=None, synthetic=16, student=16):
    dfq = DFQ(DCGANGenerator(size=8, latent_dim=8, width=8), DFQConfig(batch_size=synthetic))
    objective = {} if objective is None else {"objective": objective}
    return lambda teacher, task: distill(
        teacher,
        SmallVGG("8 M 8", 4),
        synthesizer=dfq,
        config=DistillConfig(batch_size=student),
        iterations=1,
        **objective,
    )


@pytest.mark.parametrize(
    "run, name",
    [
        (big(synthetic=HUGE), "DFQConfig.batch_size"),
        (big(student=HUGE), "DistillConfig.batch_size"),
        (
            big(DecoyEscape(decoy=DecoyConfig(LineUpConfig(per_class=HUGE)))),
            "LineUpConfig.per_class",
        ),
    ],
    ids=["images", "student", "line-up"],
)
def test_out_of_memory_names_the_batch_size_to_try(run, name, teachers, task):
    with pytest.raises(
        OutOfMemory,
        match=rf"out of memory with {name} = {HUGE}; try {name} = {HUGE // 2}, "
        "or smaller images and networks",
    ):
        run(teachers.ntl, task)
    assert not teachers.ntl.training and all(
        parameter.requires_grad for parameter in teachers.ntl.parameters()
    )


def test_out_of_memory_while_a_teacher_is_trained(task):
    class Greedy(SmallVGG):
        def forward(self, images):
            return super().forward(images.repeat(HUGE, 1, 1, 1))

    with pytest.raises(
        OutOfMemory,
        match="out of memory with TeacherConfig.batch_size = 64; try TeacherConfig.batch_size = 32",
    ):
        train_sl(task, Greedy("8 M 8", 4), TeacherConfig(epochs=1))


def test_other_errors_are_not_called_out_of_memory(task):
    class Broken(SmallVGG):
        def forward(self, images):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="^something else$"):
        train_sl(task, Broken("8 M 8", 4), TeacherConfig(epochs=1))


WRITE = """if True:
    import sys
    from atesc.inside.records import append_records
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[3])):
        record = {"experiment": "many", "seed": number, "method": sys.argv[2], "text": "x" * 200}
        append_records(sys.argv[1] + "/records.jsonl", [record])
        print(number, flush=True)
    """


@pytest.mark.slow
def test_eight_processes_write_and_one_is_killed(tmp_path):
    """8 x 200 records in one folder. Process 3 is killed, and only its later ones are missing."""
    command = [*PYTHON, WRITE, tmp_path]
    writers = [
        subprocess.Popen(
            [*command, f"process {n}", "200"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(8)
    ]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 8
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while writers[3].stdout.readline() != "60\n":
        pass
    time.sleep(0.02)
    writers[3].kill()
    printed = [writer.communicate()[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 3 + [-signal.SIGKILL] + [0] * 4
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines()
    written = [(record["method"], record["seed"]) for record in map(json.loads, lines)]
    assert len(set(written)) == len(written), "no record is written twice"
    for n in range(8):
        seeds = [seed for method, seed in written if method == f"process {n}"]
        assert seeds == list(range(len(seeds))), "in order, without a gap"
        if n != 3:
            assert len(seeds) == 200
        else:
            assert 61 <= len(seeds) < 200 and len(seeds) - 60 - len(printed[3]) in (1, 2), (
                "all numbers that it printed are written, and at most one more"
            )
    assert len(load_records(tmp_path)) == len(written)
    append_records(tmp_path / "records.jsonl", [{"experiment": "after"}])
    assert {file.name for file in tmp_path.iterdir()} == {"records.jsonl", ".records.jsonl.lock"}, (
        "the part that the dead process left is removed"
    )
