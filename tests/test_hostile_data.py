"""Hostile archives, idx files, images and published files are refused by a sentence in seconds."""

import bz2
import gzip
import io
import os
import pickle
import resource
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stand_ins import write_folders, write_stand_in
from torchvision.datasets.utils import check_integrity

from atesc.app.command import main
from atesc.data import domains
from atesc.data.domains import class_folders, load_domain
from atesc.data.sources import SOURCES, read_idx
from atesc.inside.errors import AtescError, ConfigError, InputError, MissingData
from atesc.inside.files import StorageError
from atesc.inside.unpack import MOST_MEMBERS, ArchiveError, gunzip, unpack

MOST = 100_000_000  # bytes that an archive may unpack to
SECONDS, MEGABYTES = 2.0, 200  # for a refusal
EVIL = b"written by the archive"


def tree(folder):
    """Everything below a folder but locks, with what would show that it was touched."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".lock":
            continue
        info = path.lstat()
        content = path.read_bytes() if path.is_file() and info.st_size < 10**6 else info.st_size
        entries[str(path.relative_to(folder))] = (
            info.st_mode,
            os.readlink(path) if path.is_symlink() else content if not path.is_dir() else None,
        )
    return entries


class Watch:
    """A refusal of type `error`: one line, quick, within memory, and with no change in `folder`."""

    slowest = 0.0, ""

    def __init__(self, folder, error=AtescError, match=None):
        self.folder, self.expected = folder, pytest.raises(error, match=match)

    def __enter__(self):
        self.before, self.memory, self.start = (
            tree(self.folder),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            (time.process_time(), time.monotonic()),
        )
        return self.expected.__enter__()

    def __exit__(self, *raised):
        seconds, waited = time.process_time() - self.start[0], time.monotonic() - self.start[1]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.memory
        self.expected.__exit__(*raised)
        message = str(raised[1])
        Watch.slowest = max(Watch.slowest, (seconds, message[:150]))
        assert message.isprintable() and len(message) < 1500, message
        assert seconds < SECONDS and waited < 10 * SECONDS, (
            "of work, and on a machine that has other work as well"
        )
        assert memory < MEGABYTES * 1000, memory
        assert tree(self.folder) == self.before
        return True


@pytest.fixture(scope="module", autouse=True)
def slowest():
    yield
    print("\nslowest refusal: {:.2f} s, {}".format(*Watch.slowest))


# Archives that reach out of their folder


def header(name, size=0, **fields):
    """A tar header as it is written, whatever sense it makes."""
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def entry(name, content=EVIL, **fields):
    return header(name, len(content), **fields) + content + bytes(-len(content) % 512)


def pax(**keywords):
    records = b""
    for key, value in keywords.items():
        text = f" {key}=".encode() + value + b"\n"
        length = len(text)
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        records += str(length).encode() + text
    return entry("pax", records, type=tarfile.XHDTYPE)


LINK = dict(type=tarfile.SYMTYPE)
TARS = {
    "absolute": entry("/tmp/escaped-from-an-archive"),
    "root": entry("/"),
    "two slashes": entry("//escaped"),
    "parent": entry("../escaped"),
    "parent in the middle": entry("a/../../escaped"),
    "parent after dots": entry("./a/./../../escaped"),
    "parent folder": header("../escaped", type=tarfile.DIRTYPE),
    "parent at the end": header("a/..", type=tarfile.DIRTYPE),
    "only parent": entry(".."),
    "parent with a blank": entry(".. /escaped"),
    "parent in a long name": pax(path=b"../escaped") + entry("harmless"),
    "parent in a GNU long name": entry("long", b"../escaped\0", type=tarfile.GNUTYPE_LONGNAME)
    + entry("harmless"),
    "backslashes": entry("..\\..\\escaped"),
    "drive": entry("C:escaped"),
    "stream": entry("file:stream"),
    "share": entry("\\\\server\\share\\escaped"),
    "link": header("link", linkname="/etc", **LINK),
    "link, then a file through it": header("link", linkname="..", **LINK) + entry("link/escaped"),
    "link, then the same name": header("link", linkname="../escaped", **LINK) + entry("link"),
    "link to itself": header("link", linkname="link", **LINK),
    "file, then a link": entry("file") + header("link", linkname="file", **LINK),
    "hard link": header("link", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "hard link out": entry("a") + header("link", type=tarfile.LNKTYPE, linkname="../precious"),
    "character device": header("zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "block device": header("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
    "fifo": header("pipe", type=tarfile.FIFOTYPE),
    "unknown type": header("odd", type=b"Z"),
    "sparse": header("holes", type=tarfile.GNUTYPE_SPARSE),
    "contiguous": header("cont", type=tarfile.CONTTYPE),
    "empty name": entry(""),
    "NUL in a name": pax(path=b"harmless\0/../../escaped") + entry("x"),
    "line break in a name": entry("two\nlines"),
    "escape sequence in a name": entry("\x1b[2Jred"),
    "not UTF-8": pax(path=b"\xff\xfe") + entry("x"),
    "right to left": entry("harmless\u202egnp.exe"),
    "long name": pax(path=b"n" * 300) + entry("x"),
    "empty part": entry("a//b"),
    "twice": entry("one") + entry("one"),
    "twice but for case": entry("one") + entry("ONE"),
    "folders alike but for case": entry("one/a") + entry("ONE/b"),
    "file, then a folder": entry("one") + entry("one/two"),
    "folder, then a file": entry("one/two") + entry("one"),
    "nothing": b"",
    "only itself": header(".", type=tarfile.DIRTYPE),
    "negative size": pax(size=b"-512") + entry("x"),
    "size that is no number": pax(size=b"many") + entry("x"),
    "8 GB declared": header("large", 2**33 - 1) + EVIL,
    "a million TB declared": header("large", 2**60) + EVIL,
    "many files of 60 MB declared": entry("one")
    + header("two", 60_000_000)
    + bytes(60_000_000 // 512 * 512 + 512)
    + header("three", 60_000_000),
    "folder with 8 GB declared": header("large", 2**33 - 1, type=tarfile.DIRTYPE),
    "second header damaged": entry("one") + b"x" * 512,
    "a long name of 8 GB declared": header("long", 2**33 - 1, type=tarfile.GNUTYPE_LONGNAME) + EVIL,
    "extended headers in a chain": pax(comment=b"x") * 2000 + entry("x"),
    "a thousand levels": entry("/".join("a" * 1000)),
}


def arena(tmp_path, suffix):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_bytes(b"mine")
    return out, tmp_path / f"archive{suffix}"


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_reaches_out_is_refused(name, packed, tmp_path):
    out, archive = arena(tmp_path, ".tar")
    content = TARS[name] + bytes(1024)
    archive.write_bytes(gzip.compress(content, 1) if packed else content)
    with Watch(tmp_path, ArchiveError, "archive.tar cannot be unpacked: "):
        unpack(archive, out / "set", MOST)
    assert not os.path.lexists("/tmp/escaped-from-an-archive")


@pytest.mark.parametrize("cut", [512, 520, 1024, 1030, 1536, 2047])
def test_a_tar_that_is_cut_short_is_refused(cut, tmp_path):
    out, archive = arena(tmp_path, ".tar")
    whole = entry("one") + entry("two") + bytes(1024)
    archive.write_bytes(whole)
    assert sorted(path.name for path in unpack(archive, out / "whole", MOST).iterdir()) == [
        "one",
        "two",
    ]
    archive.write_bytes(whole[:cut])
    with Watch(tmp_path, ArchiveError):
        unpack(archive, out / "set", MOST)


def zip_with(name, content=EVIL, local=None, **fields):
    """A zip of one file whose directory has other `fields`, and whose file has the name `local`."""
    packed = io.BytesIO()
    info = zipfile.ZipInfo(name.replace("\0", "?"))
    info.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(info, content)
        for field, value in fields.items():
            setattr(info, field, value)
        archive._didModify = True
    data = bytearray(packed.getvalue())
    encoded, shown = name.replace("\0", "?").encode(), name.encode()
    start = data.rindex(encoded)
    data[start : start + len(shown)] = shown
    first = data.index(encoded) if encoded in data[:start] else None
    if first is not None and first < start:
        data[first : first + len(shown)] = local.encode() if local else shown
    return bytes(data)


def mode(kind):
    return dict(external_attr=(kind | 0o777) << 16)


def overlapping(n=250, size=2**22):
    """Many entries of the directory that share one compressed file, each under its own name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000", bytes(size))
        first = archive.infolist()[0]
        for k in range(1, n):
            info = zipfile.ZipInfo(f"{k:03d}")
            for field in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(info, field, getattr(first, field))
            archive.filelist.append(info)
        archive._didModify = True
    return packed.getvalue()


def zip_of_many(n):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for k in range(n):
            archive.writestr(str(k), b"")
    return packed.getvalue()


ZIPS = {
    "absolute": lambda: zip_with("/escaped"),
    "parent": lambda: zip_with("../escaped"),
    "parent in the middle": lambda: zip_with("a/../../escaped"),
    "backslashes": lambda: zip_with("..\\..\\escaped"),
    "drive": lambda: zip_with("C:/escaped"),
    "NUL in a name": lambda: zip_with("ab\0/../../escaped"),
    "empty name": lambda: zip_with("", b""),
    "link": lambda: zip_with("link", b"/etc/passwd", **mode(0o120000)),
    "device": lambda: zip_with("zero", **mode(0o020000)),
    "fifo": lambda: zip_with("pipe", **mode(0o010000)),
    "folder that is a file": lambda: zip_with("folder/", **mode(0o100000)),
    "another name in front": lambda: zip_with("harmless-11", local="../escaped1"),
    "encrypted": lambda: zip_with("secret", flag_bits=1),
    "odd compression": lambda: zip_with("odd", compress_type=99),
    "wrong checksum": lambda: zip_with("file", CRC=1),
    "larger than declared": lambda: zip_with("file", bytes(10**6), file_size=1000),
    "smaller than declared": lambda: zip_with("file", bytes(10**5), file_size=10**6),
    "8 GB declared": lambda: zip_with("file", file_size=2**33),
    "a file that lies beyond the end": lambda: zip_with("file", header_offset=10**6),
    "files that lie on one another": overlapping,
    "10**5 files": lambda: zip_of_many(100_000),
    "cut short": lambda: zip_with("file", os.urandom(1000))[:-30],
    "cut short in front": lambda: b"PK" + zip_with("file", os.urandom(1000))[30:],
    "empty": lambda: zip_of_many(0),
    "only two letters": lambda: b"PK",
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_that_reaches_out_is_refused(name, tmp_path):
    out, archive = arena(tmp_path, ".zip")
    archive.write_bytes(ZIPS[name]())
    with Watch(tmp_path, ArchiveError, "archive.zip cannot be unpacked: "):
        unpack(archive, out / "set", MOST)


def test_the_honest_ones_are_unpacked(tmp_path):
    """The same builders without the lie, so that it is the lie that is refused."""
    out, archive = arena(tmp_path, ".zip")
    archive.write_bytes(zip_with("folder/file", local="folder/file"))
    assert (unpack(archive, out / "zip", MOST) / "folder/file").read_bytes() == EVIL
    long = "a/" * 100 + "file"
    tar = (
        header("./", type=tarfile.DIRTYPE)
        + entry("./one/two")
        + pax(path=long.encode())
        + entry("x")
        + pax(path="größe".encode())
        + entry("y")
    )
    for k, packed in enumerate(
        (tar + bytes(1024), gzip.compress(tar + bytes(1024)), bz2.compress(tar + bytes(1024)))
    ):
        archive.write_bytes(packed)
        folder = unpack(archive, out / f"tar{k}", len(EVIL) * 3)
        assert {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        } == {"one/two", long, "größe"}
        assert (folder / "one/two").read_bytes() == EVIL and os.stat(
            folder / "one/two"
        ).st_mode & 0o7111 == 0, "no modes of the archive's"


# Bombs


ZEROS = zlib.compressobj(9, wbits=-15)
ZEROS = ZEROS.compress(bytes(2**24)) + ZEROS.flush(
    zlib.Z_FULL_FLUSH
)  # 16 MB; such blocks can follow one another


def gzip_of(start, blocks):
    """`start` and then `blocks` times 16 MB of zeros, in gzip, made in no time."""
    return gzip.compress(start) + gzip.compress(bytes(2**24)) * blocks


def deflate_bomb(blocks=256):
    packed = io.BytesIO(
        zip_with("zeros", b"", compress_size=len(ZEROS) * blocks + 2, file_size=blocks * 2**24)
    )
    data = packed.getvalue()
    start = 30 + len("zeros")
    content = ZEROS * blocks + b"\x03\x00"
    directory = data[data.index(b"PK\1\2") :]
    end = bytearray(directory)
    end[-6:-2] = struct.pack("<I", start + len(content))  # where the directory lies
    return data[:start] + content + bytes(end)


BOMBS = {
    "4 GB of zeros in a tar": lambda: gzip_of(header("zeros", 2**32), 256),
    "4 GB in a tar, 1 byte declared": lambda: (
        gzip.compress(header("large", 1)) + gzip.compress(b"x" * 2**24) * 256
    ),
    "a long name of 4 GB": lambda: gzip_of(
        header("long", 2**32, type=tarfile.GNUTYPE_LONGNAME), 256
    ),
    "an extended header of 4 GB": lambda: gzip_of(header("long", 2**32, type=tarfile.XHDTYPE), 256),
    "a global header of 4 GB": lambda: gzip_of(header("long", 2**32, type=tarfile.XGLTYPE), 256),
    "a map of holes without end": lambda: (
        gzip_of(sparse_map(), 0)
        + gzip.compress((b"00000000001\0" * 42 + b"\1" + bytes(7)) * 2**15) * 100
    ),
    "10**5 files": lambda: gzip.compress(
        b"".join(header(str(k)) for k in range(100_000)) + bytes(1024), 1
    ),
    "10**5 times the same folder": lambda: gzip.compress(
        header("a/", type=tarfile.DIRTYPE) * 100_000, 1
    ),
    "10**4 files in folders of their own": lambda: gzip.compress(
        b"".join(header("/".join(str(k).zfill(5)) * 9) for k in range(10_000)), 1
    ),
    "4 GB of zeros in a zip": deflate_bomb,
    "zeros in bzip2": lambda: (
        bz2.compress(header("zeros", 2**27)) + bz2.compress(bytes(2**24)) * 40
    ),
    "zeros in bzip2, a tar of nothing": lambda: bz2.compress(bytes(2**24)) * 40,
}


def sparse_map():
    block = bytearray(header("holes", 0, type=tarfile.GNUTYPE_SPARSE))
    block[482] = 1  # more of the map follows
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name, tmp_path):
    out, archive = arena(tmp_path, ".bomb")
    archive.write_bytes(BOMBS[name]())
    assert archive.stat().st_size < 10_000_000
    with Watch(tmp_path, ArchiveError, "archive.bomb cannot be unpacked: "):
        unpack(archive, out / "set", MOST)


def test_a_bomb_of_one_file_is_refused(tmp_path):
    out, archive = arena(tmp_path, ".gz")
    archive.write_bytes(gzip_of(b"", 256))
    with Watch(
        tmp_path, ArchiveError, "a file in it has more than the 100,000,000 bytes that it may have"
    ):
        gunzip(archive, out / "file", MOST)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x1f\x8b",
        gzip.compress(EVIL)[:-9],
        gzip.compress(EVIL)[:-8] + bytes(8),
        gzip.compress(EVIL) + b"rubbish",
    ],
    ids=["empty", "text", "two bytes", "cut off", "wrong checksum", "rubbish behind"],
)
def test_a_damaged_gzip_is_refused(content, tmp_path):
    out, archive = arena(tmp_path, ".gz")
    archive.write_bytes(content)
    (out / "file").write_bytes(b"old")
    if content:  # gzip takes an empty file for one that holds nothing
        with Watch(tmp_path, ArchiveError, "archive.gz cannot be unpacked: "):
            gunzip(archive, out / "file", MOST)
    with Watch(tmp_path, ArchiveError, "archive.gz cannot be unpacked: "):
        unpack(archive, out / "set", MOST)


def test_a_target_that_is_in_use_is_refused(tmp_path):
    out, archive = arena(tmp_path, ".tar")
    archive.write_bytes(entry("one") + bytes(1024))
    (out / "elsewhere").mkdir()
    (out / "link").symlink_to(out / "elsewhere")
    (out / "dangling").symlink_to(out / "nowhere")
    for name in ("link", "dangling", "precious", "../out"):
        with Watch(tmp_path, StorageError, "is there already; move it away"):
            unpack(archive, out / name, MOST)
    with Watch(tmp_path, MissingData, "there is no archive .*nothing.tar"):
        unpack(tmp_path / "nothing.tar", out / "set", MOST)
    (out / ".elsewhere.unpacking").symlink_to(out)  # planted, or left behind
    assert [path.name for path in unpack(archive, out / "elsewhere", MOST).iterdir()] == ["one"]
    assert (out / "precious").read_bytes() == b"mine" and not (
        out / ".elsewhere.unpacking"
    ).is_symlink()


# idx files

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx_pair(folder, images=None, labels=None):
    """Two images and labels, or what is given in their stead."""
    folder.mkdir(parents=True, exist_ok=True)
    good = {
        "images": struct.pack(">IIII", 0x803, 2, 28, 28) + bytes(range(224)) * 7,
        "labels": struct.pack(">II", 0x801, 2) + bytes([3, 4]),
    }
    for part in ("train", "t10k"):
        for kind, content in (("images", images), ("labels", labels)):
            digits = {"images": 3, "labels": 1}[kind]
            file = folder / f"{part}-{kind}-idx{digits}-ubyte"
            file.write_bytes(good[kind] if content is None or part == "t10k" else content)
    return folder


def images_of(magic=0x803, n=2, rows=28, columns=28, length=1568):
    return struct.pack(">IIII", magic, n, rows, columns) + bytes(length)


IDX = {
    "empty": images_of()[:0],
    "half a magic number": images_of()[:2],
    "half a header": images_of()[:13],
    "other bytes": b"\x89PNG" + images_of()[4:],
    "gzip": gzip.compress(images_of()),
    "type that is none": images_of(0x03),
    "signed": images_of(0x903),
    "floating point": images_of(0xD03, length=1568 * 4),
    "labels for images": struct.pack(">II", 0x801, 2) + bytes(2),
    "four dimensions": images_of(0x804),
    "255 dimensions": images_of(0x8FF),
    "no images": images_of(n=0, length=0),
    "more images than it holds": images_of(n=3),
    "fewer images than it holds": images_of(n=1),
    "four billion images": images_of(n=2**32 - 1),
    "a million images": images_of(n=10**6),
    "27 columns": images_of(columns=27),
    "one long row": images_of(rows=1, columns=784),
    "sizes that overflow": images_of(n=2**31, rows=2**31, columns=2**31),
    "a byte short": images_of(length=1567),
    "a byte too many": images_of(length=1569),
}


@pytest.mark.parametrize("name", IDX)
def test_an_idx_file_that_is_none_is_refused(name, tmp_path):
    idx_pair(tmp_path / "MNIST/raw", images=IDX[name])
    with Watch(tmp_path, InputError, f"{IMAGES} must be "):
        load_domain("mnist", 16, tmp_path)


def test_idx_labels_that_are_none_are_refused(tmp_path):
    raw = tmp_path / "MNIST/raw"
    assert idx_pair(raw) and load_domain("mnist", 28, tmp_path).train.labels.tolist() == [3, 4]
    for labels, match in (
        (
            struct.pack(">II", 0x801, 3) + bytes(3),
            "holds 2 images, but train-labels-idx1-ubyte 3 labels",
        ),
        (
            struct.pack(">II", 0x801, 2) + bytes(3),
            f"{LABELS} must be 10 bytes long by its header, got 11",
        ),
        (b"\0\0\x08\x01", f"{LABELS} must be an idx file of bytes"),  # a header without a length
        (
            struct.pack(">II", 0x801, 2) + bytes([3, 10]),
            "labels of mnist must be 0 to 9, got .3, 10",
        ),
        (
            images_of(),
            f"{LABELS} must be an idx file of bytes, shape ..N.. with N from 1 to 100000, "
            "got a header of 00000803",
        ),
    ):
        idx_pair(raw, labels=labels)
        with Watch(tmp_path, InputError, match):
            load_domain("mnist", 16, tmp_path)


def test_a_file_of_100_gb_is_not_read(tmp_path):
    idx_pair(tmp_path / "FashionMNIST/raw")
    os.truncate(tmp_path / "FashionMNIST/raw" / IMAGES, 100 * 10**9)
    with Watch(tmp_path, InputError, "must be 1,584 bytes long by its header, got 100,000,000,000"):
        load_domain("fashion_mnist", 16, tmp_path)
    write_folders(tmp_path / "own", ["cat", "dog"])
    os.truncate(tmp_path / "own/train/cat/0.png", 100 * 10**9)
    with Watch(
        tmp_path,
        InputError,
        "cat/0.png cannot be read as an image: it is 100,000,000,000 bytes long",
    ):
        load_domain(f"folder:{tmp_path / 'own'}", 16)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    raw = idx_pair(tmp_path / "MNIST/raw")
    (raw / IMAGES).unlink()
    os.mkfifo(raw / IMAGES)
    with Watch(tmp_path, MissingData, f"{IMAGES} is missing"):
        load_domain("mnist", 16, tmp_path)


def test_what_old_versions_of_torchvision_kept_is_not_read(tmp_path):
    """torchvision prefers processed/*.pt where they are."""
    idx_pair(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/processed").mkdir()
    for part in ("training.pt", "test.pt"):
        (tmp_path / "MNIST/processed" / part).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    assert (
        load_domain("mnist", 28, tmp_path).train.labels.tolist() == [3, 4]
        and not (tmp_path / "ran").exists()
    )


# Files with published sums


class Canary:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_pickle_with_another_sum_is_never_opened(file, tmp_path, monkeypatch, capsys):
    """The other files count as published, so that only this one stands in the way."""
    write_stand_in("cifar10", tmp_path)
    bad = tmp_path / "cifar-10-batches-py" / file
    bad.write_bytes(pickle.dumps(Canary(tmp_path / "ran")))

    def check(path, md5=None):
        return check_integrity(path, md5) if Path(path).name == file else Path(path).is_file()

    for module in ("atesc.data.sources", "torchvision.datasets.cifar"):
        monkeypatch.setattr(f"{module}.check_integrity", check)
    with Watch(
        tmp_path, MissingData, rf"or is damaged there \({bad} does not have the published MD5 sum"
    ):
        load_domain("cifar10", 16, tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bad.read_bytes())
    assert (tmp_path / "ran").exists(), "the canary sings"


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.sums])
def test_no_reader_is_called_for_files_with_another_sum(name, tmp_path, monkeypatch):
    write_stand_in(name, tmp_path)
    called = []
    for reader in ("bz2.open", "scipy.io.loadmat", "pickle.load", "numpy.fromfile"):
        monkeypatch.setattr(reader, lambda *args, **named: called.append(args))
    with Watch(tmp_path, MissingData, "does not have the published MD5 sum"):
        load_domain(name, 16, tmp_path)
    assert called == []


def test_a_bzip2_bomb_under_the_name_of_usps(tmp_path):
    write_stand_in("usps", tmp_path)
    (tmp_path / "usps.bz2").write_bytes(bz2.compress(bytes(2**24)) * 256)
    with Watch(tmp_path, MissingData, "usps.bz2 does not have the published MD5 sum"):
        load_domain("usps", 16, tmp_path)


# Class folders


def png(width, height, data=b""):
    """A PNG that says it is so large."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def image_bytes(kind, size=(20, 10)):
    out = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ).save(out, kind)
    return out.getvalue()


PICTURES = {
    "empty": b"",
    "text": b"no image",
    "zeros": bytes(1000),
    "half": image_bytes("PNG")[:200],
    "half a JPEG": image_bytes("JPEG")[:300],
    "header only": image_bytes("PNG")[:33],
    "60 Mpx": png(10_000, 6_000, zlib.compress(bytes(10_001) * 6_000, 1)),
    "400 Mpx": png(20_000, 20_000),
    "four billion wide": png(2**32 - 1, 2**32 - 1),
    "no width": png(0, 10),
    "long chunk": png(4, 4)[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + bytes(100),
    "text bomb": png(4, 4)[:33]
    + struct.pack(">I", 20_010)
    + b"zTXt"
    + b"k\0\0"
    + zlib.compress(bytes(20_000_000))[:20_007].ljust(20_007, b"\0"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    b"(ran) print\n",
    "GIF": image_bytes("GIF"),
    "TIFF with an endless list": b"II*\0\x08\0\0\0\xff\xff" + bytes(500),
    "PPM with long numbers": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "BMP upside down": b"BM"
    + struct.pack("<IHHI", 54, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_none_is_refused_by_name(name, tmp_path):
    write_folders(tmp_path, ["cat", "dog"])
    (tmp_path / "train/dog/bad.png").write_bytes(PICTURES[name])
    with Watch(tmp_path, InputError, "train/dog/bad.png cannot be read as an image: "):
        load_domain(f"folder:{tmp_path}", 16)


@pytest.mark.parametrize(
    "error",
    [
        Image.DecompressionBombError,
        SyntaxError,
        struct.error,
        EOFError,
        MemoryError,
        IndexError,
        RecursionError,
        OSError,
    ],
)
def test_whatever_a_decoder_raises_is_an_input_error(error, tmp_path, monkeypatch):
    write_folders(tmp_path, ["cat", "dog"])

    def raises(*args, **named):
        raise error("deep inside")

    monkeypatch.setattr(domains.Image, "open", raises)
    with Watch(tmp_path, InputError, "cat/0.png cannot be read as an image: deep inside"):
        load_domain(f"folder:{tmp_path}", 16)


def test_pictures_under_odd_names(tmp_path):
    write_folders(tmp_path, ["cat", "dog"], parts=("",), n=4)
    whole = load_domain(f"folder:{tmp_path}", 16)
    for name in (b"two\nlines.png", b"\xff.png", "größe.png".encode(), b"\x1b[2J.png"):
        path = os.path.join(os.fsencode(tmp_path), b"cat", name)
        shutil.copy(tmp_path / "cat/0.png", path)
        assert len(load_domain(f"folder:{tmp_path}", 16).train) > len(whole.train) or len(
            load_domain(f"folder:{tmp_path}", 16).test
        ) > len(whole.test)
        Path(os.fsdecode(path)).write_bytes(b"")
        with pytest.raises(InputError, match="cannot be read as an image") as refusal:
            load_domain(f"folder:{tmp_path}", 16)
        assert str(refusal.value).isprintable()
        os.remove(path)
    for name in (b"two\nlines", b"\xff"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        shutil.copytree(os.path.join(os.fsencode(tmp_path), b"cat"), folder)
        with pytest.raises(
            InputError, match="must have class folders with printable names"
        ) as refusal:
            load_domain(f"folder:{tmp_path}", 16)
        assert str(refusal.value).isprintable()
        shutil.rmtree(folder)


def test_what_is_no_image_is_left_alone_and_empty_classes_are_not(tmp_path):
    write_folders(tmp_path, ["cat", "dog"], parts=("",), n=4)
    whole = load_domain(f"folder:{tmp_path}", 16)
    for name in ("cat/notes.txt", "cat/.DS_Store", "readme.png.txt", "picture.png"):
        (tmp_path / name).write_bytes(b"no image")
    assert load_domain(f"folder:{tmp_path}", 16).train.images.equal(whole.train.images)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox/notes.txt").write_bytes(b"no image")
    with Watch(
        tmp_path, InputError, "fox holds no images; files count that end in .jpg, .jpeg, .png"
    ):
        load_domain(f"folder:{tmp_path}", 16)


def test_links_in_a_class_folder(tmp_path):
    write_folders(tmp_path / "more", ["one"], parts=("",), n=3)
    home = tmp_path / "own"
    write_folders(home, ["cat", "dog"], parts=("",), n=4)
    (home / "cat/more").symlink_to(tmp_path / "more/one")
    linked = load_domain(f"folder:{home}", 16)
    assert len(linked.train) + len(linked.test) == 11, "links are followed"
    circles = {"cat/up": home, "dog/self": home / "dog", "cat/root": "/", "cat/here": "."}
    for name, where in circles.items():
        (home / name).symlink_to(where)
        with Watch(home, InputError, "links must not go in circles"):
            load_domain(f"folder:{home}", 16)
        (home / name).unlink()
    for one, other in (("a", "b"), ("b", "a")):  # two folders elsewhere that lead to each other
        (tmp_path / one).mkdir()
        (tmp_path / one / "on").symlink_to(tmp_path / other)
    (home / "cat/two").symlink_to(tmp_path / "a")
    with Watch(home, InputError, "links must not go in circles"):
        load_domain(f"folder:{home}", 16)
    (home / "cat/two").unlink()
    for name, where in {
        "broken.png": "nowhere",
        "zero.png": "/dev/zero",
        "loop.png": "loop.png",
    }.items():
        (home / "dog" / name).symlink_to(where)
        with Watch(
            home,
            InputError,
            f"dog/{name} cannot be read as an image: it is a broken link, a pipe or a device",
        ):
            load_domain(f"folder:{home}", 16)
        (home / "dog" / name).unlink()
    os.mkfifo(home / "dog/pipe.png")
    with Watch(
        home,
        InputError,
        "pipe.png cannot be read as an image: it is a broken link, a pipe or a device",
    ):
        load_domain(f"folder:{home}", 16)


def test_folders_that_the_system_does_not_open(tmp_path, monkeypatch):
    """The tests may run as a user who may do everything, so the system's answer is made up."""
    write_folders(tmp_path, ["cat", "dog"], parts=("",), n=4)
    real = os.scandir

    def scandir(path):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for closed in (str(tmp_path), "dog"):
        with pytest.raises(InputError, match=f"{closed} cannot be read: Permission denied"):
            class_folders("own", 16, tmp_path)


@pytest.mark.parametrize(
    "path", ["", "a\0b", "two\nlines", "\udcff", "~nobody-of-that-name/x", __file__]
)
def test_paths_that_name_no_folder(path, tmp_path, monkeypatch, capsys):
    for call in (
        lambda: load_domain(f"folder:{path}", 16),
        lambda: load_domain("mnist", 16, path),
        lambda: load_domain("digits", 16, path),
    ):
        with Watch(tmp_path, ConfigError, "(folder:PATH|root) must name a folder"):
            call()
    assert main(["download", "mnist", "--root", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    if path and "\0" not in path:
        monkeypatch.setenv("ATESC_DATA", path)
        with pytest.raises(ConfigError, match=r"\$ATESC_DATA must name a folder"):
            load_domain("mnist", 16)


def test_class_folders_that_are_files(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(b"")
    with Watch(tmp_path, MissingData, "must hold train/<class>"):
        load_domain(f"folder:{tmp_path}", 16)
    write_folders(tmp_path / "deep", ["cat"])
    (tmp_path / "deep/train/dog").write_bytes(b"")
    with Watch(tmp_path, InputError, "deep/train must hold at least two class folders, got ..cat"):
        load_domain(f"folder:{tmp_path}/deep", 16)
    (tmp_path / "void").mkdir()
    with Watch(tmp_path, MissingData, "void must hold train/<class>"):
        load_domain(f"folder:{tmp_path}/void", 16)


# Fuzzing: a valid result or an AtescError, and nothing changed outside the target

FUZZ = settings(deadline=None, max_examples=150, database=None, derandomize=True)


@st.composite
def mutated(draw, whole):
    """`whole` with some bytes changed, cut off, repeated or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
        at = draw(
            st.integers(0, max(len(data) - 1, 0)) | st.integers(0, min(40, max(len(data) - 1, 0)))
        )
        how = draw(st.sampled_from(["set", "flip", "cut", "drop", "insert"]))
        if how == "set" and data:
            data[at] = draw(st.sampled_from([0, 1, 8, 127, 128, 255]) | st.integers(0, 255))
        elif how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 600))]
        else:
            data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


def fresh(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(images=mutated(images_of()), labels=mutated(struct.pack(">II", 0x801, 2) + bytes([3, 4])))
@FUZZ
def test_fuzzed_idx_files(tmp_path_factory, images, labels):
    folder = idx_pair(fresh(tmp_path_factory), images, labels)
    before = tree(folder)
    try:
        pixels, classes = read_idx(folder, "train")
    except AtescError as error:
        assert str(error).isprintable()
    else:
        assert (
            images == images_of()[:16] + pixels.numpy().tobytes()
            and labels[8:] == classes.numpy().tobytes()
            and len(pixels) == len(classes)
        )
    assert tree(folder) == before


GOOD = {kind: image_bytes(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")}
letters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
names = st.sampled_from(["cat", "dog", "train", "test", "a b", "é", "x.png"]) | st.text(
    letters, min_size=1, max_size=6
).filter(lambda text: text not in (".", ".."))
contents = st.sampled_from(list(GOOD.values())).flatmap(mutated) | st.sampled_from(
    [*GOOD.values(), None]
)
trees = st.lists(
    st.tuples(
        st.lists(names, min_size=1, max_size=3),
        st.sampled_from([".png", ".JPG", ".tif", ".txt", ""]),
        contents,
    ),
    max_size=8,
)


@given(files=trees, split=st.booleans())
@FUZZ
def test_fuzzed_class_folders(tmp_path_factory, files, split):
    """What is drawn comes on top of two classes of four images."""
    folder = fresh(tmp_path_factory)
    write_folders(folder, ["cat", "dog"], parts=("train", "test") if split else ("",), n=4)
    for parts, suffix, content in files:
        path = folder.joinpath(*parts[:-1], parts[-1] + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if content is None else path.write_bytes(content)
        except OSError:  # a file where a folder is wanted
            pass
    before = tree(folder)
    try:
        domain = class_folders("own", 16, folder)
    except AtescError as error:
        assert str(error).isprintable()
    else:
        assert len(domain.train) and len(domain.test) and len(domain.classes) > 1
    assert tree(folder) == before


@given(content=st.sampled_from(sorted(GOOD)).flatmap(lambda kind: mutated(GOOD[kind])))
@FUZZ
def test_fuzzed_images(tmp_path_factory, content):
    path = fresh(tmp_path_factory) / "x.png"
    path.write_bytes(content)
    try:
        image = domains._read_image(str(path), 8)
    except InputError as error:
        assert str(error).isprintable() and str(path) in str(error)
    else:
        assert image.shape == (3, 8, 8) and 0 <= image.min() <= image.max() <= 1


member_names = st.sampled_from(
    ["a", "A", "b/c", "../x", "/x", "b", "./a", "", ".", "b/../../x", "a\\x", "x/" * 30 + "x"]
) | st.text(st.characters(codec="ascii", min_codepoint=33), max_size=8)
kinds = st.sampled_from([tarfile.REGTYPE] * 8 + [bytes([kind]) for kind in b"01234567gxLKS"])
members = st.lists(
    st.tuples(
        member_names, kinds, st.sampled_from(["a", "..", "/etc", "b/c"]), st.binary(max_size=600)
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def archives(draw):
    packed, wanted = io.BytesIO(), draw(members)
    if draw(st.booleans()):
        with zipfile.ZipFile(
            packed, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        ) as archive:
            for name, _, _, content in wanted:
                archive.writestr(zipfile.ZipInfo(name or "."), content)
    else:
        with tarfile.open(
            fileobj=packed,
            mode="w",
            format=draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
        ) as archive:
            for name, kind, target, content in wanted:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, target, len(content)
                archive.addfile(info, io.BytesIO(content))
    pack = draw(st.sampled_from([bytes, bytes, gzip.compress, bz2.compress]))
    if draw(st.booleans()):
        return pack(draw(mutated(packed.getvalue())))
    return draw(mutated(pack(packed.getvalue())))


@given(content=archives())
@settings(FUZZ, max_examples=300)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_fuzzed_archives(tmp_path_factory, content):
    out, archive = arena(fresh(tmp_path_factory), ".any")
    archive.write_bytes(content)
    before = tree(out.parent)
    try:
        folder = unpack(archive, out / "set", 10_000)
    except AtescError as error:
        assert str(error).isprintable()
        assert tree(out.parent) == before
    else:
        inside = list(folder.rglob("*"))
        assert (
            inside
            and all(path.is_dir() or path.is_file() for path in inside)
            and not any(path.is_symlink() for path in inside)
        )
        assert (
            sum(path.stat().st_size for path in inside if path.is_file()) <= 10_000
            and len(inside) <= MOST_MEMBERS
        )
        shutil.rmtree(folder)
        assert tree(out.parent) == before
