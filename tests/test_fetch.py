"""Downloads from a server that may do anything are whole and checked, or absent with a reason."""

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from stand_ins import write_stand_in

from atesc.app.command import main
from atesc.data.domains import load_domain
from atesc.data.sources import SOURCES, Remote, download
from atesc.inside import fetch as module
from atesc.inside.errors import ConfigError, MissingData
from atesc.inside.fetch import DownloadError, fetch
from atesc.inside.files import StorageError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
MOST = 2_000_000


class Server(ThreadingHTTPServer):
    """Serves `files` and misbehaves as its attributes say.

    `log` has a list for each request: the path, the range, and the number of bytes sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.log = {"/file": CONTENT}, []
        self.ranges = True  # it knows ranges
        self.declared = None  # a Content-Length that is not true
        self.undeclared = False  # it sends no Content-Length
        self.stop_after = []  # bytes sent before it breaks off, answer by answer
        self.stall = 0.0  # seconds that it sleeps before it breaks off
        self.drip = 0.0  # seconds that it sleeps between blocks
        self.status = []  # answers before the honest one
        self.location = None  # a redirect
        self.content_range = None  # a Content-Range that is not true

    def url(self, path="/file"):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *args):
        pass  # a client that has gone


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        it, wanted = self.server, self.headers.get("Range")
        entry = [self.path, wanted, 0]
        it.log.append(entry)
        if it.location and self.path == "/file":
            self.send_response(302)
            self.send_header("Location", it.location)
            return self.end_headers()
        content = it.files.get(self.path)
        status = it.status.pop(0) if it.status else 200 if content is not None else 404
        if status != 200:
            return self.send_error(status)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and it.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range",
                it.content_range or f"bytes {start}-{len(content) - 1}/{len(content)}",
            )
        if not it.undeclared:
            self.send_header("Content-Length", str(it.declared or len(content) - start))
        self.end_headers()
        end = start + it.stop_after.pop(0) if it.stop_after else len(content)
        for k in range(start, min(end, len(content)), 50_000):
            block = content[k : min(k + 50_000, end)]
            self.wfile.write(block)
            entry[2] += len(block)
            time.sleep(it.drip)
        if end < len(content):
            time.sleep(it.stall)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.01)
    it = Server()
    thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield it
    it.shutdown()
    thread.join()
    it.server_close()


def left(folder):
    """What lies in the folder, but for the empty files of locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(
    "checksum", [MD5, hashlib.sha256(CONTENT).hexdigest()], ids=["md5", "sha256"]
)
def test_a_download_is_whole_and_is_made_once(checksum, server, tmp_path, capfd):
    path = fetch(server.url(), tmp_path / "new/file", checksum, MOST)
    assert path.read_bytes() == CONTENT and left(tmp_path / "new") == ["file"]
    fetch(server.url(), path, checksum, MOST)
    assert [entry[1:] for entry in server.log] == [[None, len(CONTENT)]]
    assert capfd.readouterr() == ("", ""), "no bar without a terminal"


def test_what_is_there_needs_no_writing(server, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    fetch(server.url(), tmp_path / "file", MD5, MOST)
    assert server.log == [] and os.listdir(tmp_path) == ["file"]  # not even a lock


def test_a_damaged_file_is_replaced_in_the_end_only(server, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    server.stop_after = [300_000]
    with pytest.raises(
        DownloadError,
        match="broke off after 300,000 of 1,000,000 bytes; the downloaded part is kept",
    ):
        fetch(server.url(), tmp_path / "file", MD5, MOST, tries=1)
    assert (tmp_path / "file").read_bytes() == b"old" and left(tmp_path) == [".file.part", "file"]
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("in_one_call", [True, False])
def test_an_interrupted_download_goes_on(in_one_call, server, tmp_path):
    server.stop_after = [300_000, 200_000]
    for _ in range(0 if in_one_call else 2):
        with pytest.raises(DownloadError):
            fetch(server.url(), tmp_path / "file", MD5, MOST, tries=1)
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert [entry[1:] for entry in server.log] == [
        [None, 300_000],
        ["bytes=300000-", 200_000],
        ["bytes=500000-", 500_000],
    ]


def test_where_no_length_is_declared_the_checksum_finds_the_end_missing(server, tmp_path):
    server.stop_after, server.undeclared = [300_000], True
    with pytest.raises(DownloadError, match="it is not the published file: md5"):
        fetch(server.url(), tmp_path / "file", MD5, MOST)
    assert left(tmp_path) == []
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.stop_after, server.ranges = [300_000], False
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert [entry[2] for entry in server.log] == [300_000, 1_000_000]


@pytest.mark.parametrize(
    "given", ["bytes 0-999999/1000000", "bytes 300001-999999/1000000", "nonsense", "bytes -5-9/10"]
)
def test_another_range_than_asked_for_is_not_appended(given, server, tmp_path):
    server.stop_after, server.content_range = [300_000], given
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert [entry[1] for entry in server.log] == [None, "bytes=300000-", None]


@pytest.mark.parametrize(
    "part", [b"x" * 300_000, b"x" * 1_000_000, b"x" * 1_500_000], ids=["short", "as long", "longer"]
)
def test_a_part_of_another_file_is_thrown_away(part, server, tmp_path):
    (tmp_path / ".file.part").write_bytes(part)
    assert fetch(server.url(), tmp_path / "file", MD5, MOST, tries=1).read_bytes() == CONTENT
    assert server.log[-1][1] is None and len(server.log) == 2


def test_a_whole_part_needs_its_name_only(server, tmp_path):
    """Stopped between the last byte and the new name."""
    (tmp_path / ".file.part").write_bytes(CONTENT)
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert [entry[2] for entry in server.log] == [0]


def test_a_part_that_is_a_link_is_not_written_through(server, tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / ".file.part").symlink_to(tmp_path / "precious")
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert (tmp_path / "precious").read_bytes() == b"mine" and not (tmp_path / "file").is_symlink()


def test_a_server_that_stalls_is_given_up(server, tmp_path):
    server.stop_after, server.stall = [100_000, 100_000], 5.0
    start = time.monotonic()
    with pytest.raises(DownloadError, match="timed out; the downloaded part is kept"):
        fetch(server.url(), tmp_path / "file", MD5, MOST, timeout=0.3, tries=2)
    assert 0.5 < time.monotonic() - start < server.stall, "it did not wait for the server to go on"
    assert fetch(server.url(), tmp_path / "file", MD5, MOST, timeout=0.3).read_bytes() == CONTENT
    assert server.log[-1][1] == "bytes=200000-"


def test_a_server_that_only_drips_is_given_up(server, tmp_path, monkeypatch):
    server.drip = 0.1
    monkeypatch.setattr(module, "SLOWEST", 10**7)
    with pytest.raises(DownloadError, match=r"sent only \d+ bytes in 0 s"):
        fetch(server.url(), tmp_path / "file", MD5, MOST, timeout=0.3, tries=1)


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.01)
    with pytest.raises(DownloadError, match="127.0.0.1:9/x cannot be downloaded: .*refused$"):
        fetch("http://127.0.0.1:9/x", tmp_path / "file", MD5, MOST)
    assert left(tmp_path) == []


def test_another_file_than_the_published_one_is_removed(server, tmp_path):
    with pytest.raises(
        DownloadError, match=f"it is not the published file: md5 {MD5}, not {'0' * 32}"
    ):
        fetch(server.url(), tmp_path / "file", "0" * 32, MOST)
    assert left(tmp_path) == [] and len(server.log) == 1, (
        "a whole file that is wrong is not asked for again"
    )


def test_a_body_that_is_cut_short(server, tmp_path):
    server.declared = 1_200_000
    with pytest.raises(DownloadError, match="broke off after 1,000,000 of 1,200,000 bytes"):
        fetch(server.url(), tmp_path / "file", MD5, MOST, tries=1)


@pytest.mark.parametrize(
    "declared, undeclared, sent", [(None, False, 0), (None, True, 800_000), (700_000, False, 0)]
)
def test_a_body_that_is_too_large(declared, undeclared, sent, server, tmp_path):
    """It is not read when it is declared, and not to its end when it is not."""
    server.declared, server.undeclared, server.drip = declared, undeclared, 0.01
    with pytest.raises(DownloadError, match="it has more than the 500,000 bytes that are accepted"):
        fetch(server.url(), tmp_path / "file", MD5, 500_000)
    assert left(tmp_path) == [] and len(server.log) == 1
    time.sleep(0.1)
    assert not undeclared or server.log[0][2] <= sent


def test_a_body_that_is_longer_than_declared(server, tmp_path):
    server.declared = 400_000
    with pytest.raises(DownloadError, match="it is not the published file: md5"):
        fetch(server.url(), tmp_path / "file", MD5, MOST)


@pytest.mark.parametrize(
    "status, asked", [(404, 1), (403, 1), (410, 1), (503, 3), (500, 3), (429, 3), (204, 1)]
)
def test_a_server_that_has_nothing(status, asked, server, tmp_path):
    server.status = [status] * 9
    with pytest.raises(
        DownloadError, match=f"/file cannot be downloaded: the server answers {status}"
    ):
        fetch(server.url(), tmp_path / "file", MD5, MOST, tries=3)
    assert len(server.log) == asked and left(tmp_path) == []


def test_a_server_that_is_busy_for_a_moment(server, tmp_path):
    server.status = [503, 429]
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://127.0.0.1/"]
)
def test_a_redirect_to_anything_but_http(where, server, tmp_path):
    server.location = where
    with pytest.raises(DownloadError, match="/file cannot be downloaded"):
        fetch(server.url(), tmp_path / "file", MD5, MOST, tries=1)
    assert left(tmp_path) == []


def test_redirects(server, tmp_path):
    server.files["/there"], server.location = CONTENT, "/there"
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    server.location = "/file"  # in circles
    with pytest.raises(DownloadError, match="infinite loop"):
        fetch(server.url(), tmp_path / "other", MD5, MOST)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "",
        "ftp://x/y",
        "http://",
        "http:///x",
        "http://x/a b",
        "http://x/\nHost: y",
        "HTTP:x",
        7,
    ],
)
def test_addresses_that_are_none(url, tmp_path):
    with pytest.raises(ConfigError, match="url must begin with http:// or https://"):
        fetch([url], tmp_path / "file", MD5, MOST)


@pytest.mark.parametrize("checksum", ["", "abc", MD5.upper() + "0", "g" * 32, MD5 + "\n", None])
def test_checksums_that_are_none(checksum, tmp_path):
    with pytest.raises(ConfigError, match="checksum must be 32 hex digits of MD5 or 64 of SHA-256"):
        fetch("http://127.0.0.1/x", tmp_path / "file", checksum, MOST)


def test_mirrors_are_tried_in_turn(server, tmp_path):
    server.files["/wrong"] = b"another file"
    urls = [server.url(path) for path in ("/gone", "/wrong", "/file")]
    assert fetch(urls, tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert [entry[0] for entry in server.log] == ["/gone", "/wrong", "/file"]
    with pytest.raises(
        DownloadError,
        match="/gone cannot be downloaded: the server answers 404 Not Found; "
        ".*/wrong cannot be downloaded: it is not the published file",
    ):
        fetch(urls[:2], tmp_path / "other", MD5, MOST)


def test_no_room(server, tmp_path):
    (tmp_path / "blocked").write_bytes(b"")
    with pytest.raises(
        StorageError,
        match="a part of the path is a file, not a folder|a file of that name is in the way",
    ):
        fetch(server.url(), tmp_path / "blocked/file", MD5, MOST)
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    )
    done = run(limit + call(server, tmp_path))
    assert (
        done.returncode == 1
        and "cannot be written to: File too large" in done.stderr.splitlines()[-1]
    )
    assert (
        left(tmp_path) == [".file.part", "blocked"]
        and fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    )


def call(server, folder, **given):
    arguments = f"{server.url()!r}, {str(folder / 'file')!r}, {MD5!r}, {MOST}, **{given}"
    return f"from atesc.inside.fetch import fetch; fetch({arguments})"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def until(condition):
    """Wait for something that another process does."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_leaves_what_the_next_one_goes_on_from(how, server, tmp_path):
    server.stop_after, server.stall = [400_000], 600.0
    process = subprocess.Popen(
        [sys.executable, "-c", call(server, tmp_path)], stderr=subprocess.DEVNULL
    )
    part = tmp_path / ".file.part"
    until(lambda: part.exists() and part.stat().st_size >= 300_000)
    process.send_signal(how)
    assert process.wait(60) != 0 and not (tmp_path / "file").exists()
    size = part.stat().st_size
    assert 300_000 <= size <= 400_000
    assert fetch(server.url(), tmp_path / "file", MD5, MOST).read_bytes() == CONTENT
    assert [entry[1] for entry in server.log] == [None, f"bytes={size}-"] and server.log[1][
        2
    ] == len(CONTENT) - size


def test_two_processes_at_once_get_one_file(server, tmp_path):
    server.drip = 0.05  # a second in all
    both = [
        subprocess.Popen([sys.executable, "-c", call(server, tmp_path)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert (tmp_path / "file").read_bytes() == CONTENT and [entry[1:] for entry in server.log] == [
        [None, len(CONTENT)]
    ]
    assert left(tmp_path) == ["file"]


def test_one_that_waits_too_long_says_so(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.1)
    with (
        module.locked(tmp_path / "file"),
        pytest.raises(
            StorageError, match="another process is downloading it; wait until it is done"
        ),
    ):
        fetch(server.url(), tmp_path / "file", MD5, MOST)


def test_what_a_server_says_is_one_line(server, tmp_path, monkeypatch):
    """A reason phrase with escape sequences for the terminal."""
    monkeypatch.setitem(Handler.responses, 404, ("\x1b[2J gone " + "x" * 500, ""))
    with pytest.raises(DownloadError) as refusal:
        fetch(server.url("/gone"), tmp_path / "file", MD5, MOST)
    assert (
        str(refusal.value).isprintable()
        and "\\x1b[2J gone xxx" in str(refusal.value)
        and len(str(refusal.value)) < 400
    )


# The data sets


@pytest.fixture
def published(server, tmp_path, monkeypatch, any_checksum):
    """A server with stand-ins for every data set, packed as published; SOURCES points there."""
    for name, source in SOURCES.items():
        made, remotes = tmp_path / "made" / name, []
        made.mkdir(parents=True)
        write_stand_in(name, made)
        for remote in source.remotes:
            if remote.file.endswith(".tar.gz"):
                packed = io.BytesIO()
                with tarfile.open(fileobj=packed, mode="w:gz") as tar:
                    tar.add(made / remote.becomes, remote.becomes)
                content = packed.getvalue()
            elif remote.becomes:
                content = gzip.compress((made / remote.becomes).read_bytes())
            else:
                content = (made / remote.file).read_bytes()
            server.files[f"/{name}/{remote.file}"] = content
            remotes.append(
                Remote(
                    (server.url("/gone"), server.url(f"/{name}/{remote.file}")),
                    remote.file,
                    hashlib.md5(content).hexdigest(),
                    remote.becomes,
                )
            )
        monkeypatch.setitem(SOURCES, name, replace(source, remotes=tuple(remotes)))
    return tmp_path / "made"


@pytest.mark.parametrize("name", SOURCES)
def test_every_data_set_can_be_downloaded_and_read(name, published, server, tmp_path, capsys):
    root = tmp_path / "my data"
    with pytest.raises(MissingData):
        load_domain(name, 16, root)
    assert main(["download", name, "--root", str(root)]) == 0
    assert capsys.readouterr().out == f"{root / SOURCES[name].files}\n"
    one, two = load_domain(name, 16, root), load_domain(name, 16, published / name)
    assert one.train.images.equal(two.train.images) and one.test.labels.equal(two.test.labels)
    assert not list(root.rglob("*.gz")), "what has been unpacked is removed"
    asked = len(server.log)
    assert download(name, root) == root / SOURCES[name].files and len(server.log) == asked


def test_the_published_sums_are_those_of_torchvision():
    for name, source in SOURCES.items():
        assert all(
            len(remote.md5) == 32 and all(url.startswith("http") for url in remote.urls)
            for remote in source.remotes
        ), name
        if not source.sums:
            continue
        files = set(source.sums)
        assert len(files) == {"usps": 2, "svhn": 2, "cifar10": 7, "stl10": 5}[name]
        lists = getattr(source.dataset, "train_list", []) + getattr(source.dataset, "test_list", [])
        assert {(f"{source.files}/{file}", md5) for file, md5 in lists} <= set(source.sums.items())


def test_an_interrupted_data_set_goes_on(published, server, tmp_path):
    """The third of MNIST's four files breaks off; nothing that came is asked for again."""
    third = SOURCES["mnist"].remotes[2]
    content = server.files.pop(f"/mnist/{third.file}")
    with pytest.raises(DownloadError, match="t10k-images-idx3-ubyte.gz cannot be downloaded"):
        download("mnist", tmp_path / "data")
    with pytest.raises(MissingData, match="train-images-idx3-ubyte is missing"):
        load_domain("mnist", 16, tmp_path / "data")
    (tmp_path / "data" / third.file).with_name(f".{third.file.split('/')[-1]}.part").write_bytes(
        content[:100]
    )
    server.files[f"/mnist/{third.file}"] = content
    server.log.clear()
    download("mnist", tmp_path / "data")
    assert [entry[1] for entry in server.log if entry[0] != "/gone"] == ["bytes=100-", None]
    assert len(load_domain("mnist", 16, tmp_path / "data").train) == 20


def test_a_damaged_data_set_is_put_aside_and_replaced(published, server, tmp_path):
    folder = download("cifar10", tmp_path / "data")
    for k in (1, 2):
        (folder / "test_batch").unlink()
        (folder / "mine").write_bytes(b"notes")
        download("cifar10", tmp_path / "data")
        assert (tmp_path / f"data/cifar-10-batches-py.damaged-{k}/mine").read_bytes() == b"notes"
    assert len(load_domain("cifar10", 16, tmp_path / "data").test) == 10
    raw = download("mnist", tmp_path / "data")
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    download("mnist", tmp_path / "data")
    assert len(load_domain("mnist", 16, tmp_path / "data").test) == 10


def test_the_command_checks_all_names_first(published, server, tmp_path, capsys):
    assert main(["download", "usps", "fashion-mnist", "--root", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.endswith("Did you mean 'fashion_mnist'?\n") and server.log == []
    assert main(["download", "usps", "svhn", "--root", str(tmp_path / "data")]) == 0
    server.files.clear()
    assert main(["download", "stl10", "--root", str(tmp_path / "data")]) == 2
    assert "cannot be downloaded: the server answers 404" in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file/deeper", ""):
        assert main(["download", "stl10", "--root", str(root)]) == 2
    assert capsys.readouterr().err.count("\n") == 3
