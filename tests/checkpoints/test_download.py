"""Fetching from a server on this machine that breaks off, changes its file, and answers errors."""

import errno
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from redimnet_jax.checkpoints import download
from redimnet_jax.checkpoints.download import KNOWN_SHA256, fetch, licence_note, release_url
from redimnet_jax.errors import UserError

OLD = bytes(range(256)) * 4096  # 1 MiB
NEW = OLD[::-1]


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at every path; `script` holds what goes wrong, one entry for each request to come."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = OLD
        self.etag: str | None = '"old"'
        self.heeds_range = self.heeds_if_range = True
        self.script: list[Any] = []
        self.seen: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/latest/weights.pt"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that hangs up on a wrong answer is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.seen.append(dict(self.headers))
        event = server.script.pop(0) if server.script else None
        if isinstance(event, dict):  # the server's state changes
            vars(server).update(event)
            event = event.get("event")
        if event == "hang up":
            return self.close_connection_now()
        if isinstance(event, int) and event >= 400:
            return self.answer(event, {}, b"")
        start, total = 0, len(server.content)
        asked = self.headers.get("Range")
        same = not server.heeds_if_range or self.headers.get("If-Range") == server.etag
        if asked and server.heeds_range and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= total:
            return self.answer(416, {"Content-Range": f"bytes */{total}"}, b"")
        wrong = 7 if event == "wrong range" else 0
        headers = {"Content-Range": f"bytes {start + wrong}-{total - 1}/{total}"} if start else {}
        body = server.content[start:]
        stop = event[1] if isinstance(event, tuple) else len(body)
        self.answer(206 if start else 200, headers, body, stop)

    def answer(self, code: int, headers: dict[str, str], body: bytes, stop: int | None = None) -> None:
        self.send_response(code)
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:stop])
        self.close_connection_now()

    def close_connection_now(self) -> None:
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[int]:
    attempts: list[int] = []
    monkeypatch.setattr(download, "_pause", attempts.append)
    return attempts


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetch(server, tmp_path, pauses, capsys):
    path = fetch(server.url, tmp_path / "new" / "folder", sum_of(OLD).upper())
    assert path == tmp_path / "new" / "folder" / "weights.pt" and path.read_bytes() == OLD
    assert names(path.parent) == ["weights.pt"] and pauses == [] and len(server.seen) == 1
    assert "Range" not in server.seen[0]
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_known_sum_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_SHA256, server.url, sum_of(NEW))
    with pytest.raises(UserError, match=f"{sum_of(OLD)} in place of {sum_of(NEW)}"):
        fetch(server.url, tmp_path)


def test_present_file_is_used_without_network(server, tmp_path):
    (tmp_path / "weights.pt").write_bytes(NEW)
    assert fetch(server.url, tmp_path, sum_of(NEW)).read_bytes() == NEW
    assert fetch(server.url, tmp_path).read_bytes() == NEW
    with pytest.raises(UserError, match=f"{sum_of(NEW)} in place of {sum_of(OLD)}: delete "):
        fetch(server.url, tmp_path, sum_of(OLD))
    assert server.seen == [] and (tmp_path / "weights.pt").read_bytes() == NEW


def test_wrong_sum_starts_clean(server, tmp_path):
    with pytest.raises(UserError, match=f"{sum_of(OLD)} in place of {sum_of(NEW)}: it was removed"):
        fetch(server.url, tmp_path, sum_of(NEW))
    assert names(tmp_path) == []
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD


def test_broken_connection_is_resumed(server, tmp_path, pauses):
    server.script = [("stop", 400_000), ("stop", 300_000)]
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=400000-", "bytes=700000-"]
    assert [seen.get("If-Range") for seen in server.seen] == [None, '"old"', '"old"']
    assert pauses == [0, 1] and names(tmp_path) == ["weights.pt"]


def test_resumed_by_the_next_call(server, tmp_path, pauses):
    server.script = [("stop", 400_000)]
    with pytest.raises(UserError, match=r"in 1 tries \(only 400000 of 1048576 bytes arrived\).*to continue"):
        fetch(server.url, tmp_path, retries=0)
    assert names(tmp_path) == ["weights.pt.part", "weights.pt.part.etag"] and pauses == []
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert server.seen[1]["Range"] == "bytes=400000-" and names(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize("etag", ['"new"', None])
def test_changed_file_is_not_spliced(server, tmp_path, etag):
    server.script = [("stop", 400_000), {"content": NEW, "etag": etag}]
    assert fetch(server.url, tmp_path).read_bytes() == NEW
    assert server.seen[1]["If-Range"] == '"old"'


def test_changed_file_from_a_server_that_ignores_if_range(server, tmp_path):
    server.heeds_if_range = False
    server.script = [("stop", 400_000), {"content": NEW, "etag": '"new"'}]
    assert fetch(server.url, tmp_path).read_bytes() == NEW
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=400000-", None]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_no_resume_without_a_strong_etag(server, tmp_path, etag):
    server.etag = etag
    server.script = [("stop", 400_000)]
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert "Range" not in server.seen[1]


def test_server_without_ranges(server, tmp_path):
    server.heeds_range = False
    server.script = [("stop", 400_000)]
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert server.seen[1]["Range"] == "bytes=400000-"


def test_wrong_range_in_the_answer(server, tmp_path):
    server.script = [("stop", 400_000), "wrong range"]
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=400000-", None]


def test_part_that_was_complete(server, tmp_path, pauses):
    (tmp_path / "weights.pt.part").write_bytes(OLD)
    (tmp_path / "weights.pt.part.etag").write_text('"old"')
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert len(server.seen) == 1 and names(tmp_path) == ["weights.pt"] and pauses == []


def test_part_that_is_too_long(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(OLD + b"more")
    (tmp_path / "weights.pt.part.etag").write_text('"old"')
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert len(server.seen) == 2


def test_part_without_etag_is_not_trusted(server, tmp_path):
    (tmp_path / "weights.pt.part").write_bytes(NEW[:400_000])
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD


@pytest.mark.parametrize("event", [503, 500, 429, "hang up", ("stop", 0)])
def test_passing_trouble_is_retried(server, tmp_path, pauses, event):
    server.script = [event, event]
    assert fetch(server.url, tmp_path, sum_of(OLD)).read_bytes() == OLD
    assert pauses == [0, 1]


def test_lasting_trouble_ends(server, tmp_path, pauses):
    server.script = [503] * 9
    with pytest.raises(UserError, match=f"{server.url} could not be downloaded in 4 tries .*503"):
        fetch(server.url, tmp_path, retries=3)
    assert pauses == [0, 1, 2] and len(server.seen) == 4


@pytest.mark.parametrize(("code", "message"), [(404, "does not exist"), (403, "was refused"), (410, "was refused")])
def test_lasting_refusal_is_not_retried(server, tmp_path, pauses, code, message):
    server.script = [code]
    with pytest.raises(UserError, match=f"{server.url} {message}"):
        fetch(server.url, tmp_path)
    assert pauses == [] and len(server.seen) == 1


def test_no_server(server, tmp_path, pauses):
    server.server_close()
    with pytest.raises(UserError, match="could not be downloaded in 3 tries .*refused"):
        fetch(server.url, tmp_path, retries=2)
    assert pauses == [0, 1]


def test_stalled_server_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)
    release = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: release.wait(5))
    with pytest.raises(UserError, match="timed out"):
        fetch(server.url, tmp_path, retries=1)
    release.set()


def test_pauses_grow(monkeypatch):
    slept: list[float] = []
    monkeypatch.undo()
    monkeypatch.setattr(download.time, "sleep", slept.append)
    for attempt in range(7):
        download._pause(attempt)
    assert slept == [1, 2, 4, 8, 16, 30, 30]


def test_no_space_left(server, tmp_path, monkeypatch, pauses):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_save", full)
    with pytest.raises(UserError, match="weights.pt cannot be written .No space left.*: free some space"):
        fetch(server.url, tmp_path)
    assert pauses == []


def test_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*choose another folder"):
        fetch(server.url, tmp_path / "file")
    assert server.seen == []


@pytest.mark.parametrize(
    "url", ["", "weights.pt", "file:///etc/passwd", "https://host/", "https://host/..", "http://h/a b"]
)
def test_no_address(tmp_path, url):
    with pytest.raises(UserError, match="is no address of a file"):
        fetch(url, tmp_path)


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    assert download.sha256(tmp_path / "file") == sum_of(OLD)


V1 = "https://github.com/IDRnD/ReDimNet/releases/download/latest/"
V2 = "https://github.com/PalabraAI/redimnet2/releases/download/v1.0.0/"


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (("b2", "ft_lm"), V1 + "b2-vox2-ft_lm.pt"),
        (("b0", "ptn"), V1 + "b0-vox2-ptn.pt"),
        (("M", "ft_mix", "vb2+vox2+cnc"), V1 + "M-vb2+vox2+cnc-ft_mix.pt"),
        (("S", "ptn", "vb2"), V1 + "S-vb2-ptn.pt"),
        (("b6", "lm", "vox2", "redimnet2"), V2 + "b6-vox2-lm.pt"),
        (("b6", "ptn", "vb2+vox2_v0", "redimnet2"), V2 + "b6-vb2+vox2_v0-ptn.pt"),
    ],
)
def test_release_url(arguments, url):
    assert release_url(*arguments) == url


@pytest.mark.parametrize(
    "arguments",
    [
        ("b7", "ft_lm"),
        ("b2", "lm"),
        ("b2", "ft_mix"),
        ("M", "ft_mix"),
        ("M", "ptn", "vb2+vox2+cnc"),
        ("b2", "ft_lm", "vox1"),
        ("b2 b3", "ft_lm"),
        ("", "ft_lm"),
        ("b2", "ft_lm", "vox2", "redimnet2"),
        ("b5", "lm", "vb2+vox2_v0", "redimnet2"),
    ],
)
def test_what_was_never_published(arguments):
    with pytest.raises(UserError, match="b0 or b1 .*with dataset vox2 and train type ptn or "):
        release_url(*arguments)


def test_unknown_architecture():
    with pytest.raises(UserError, match="'redimnet3': choose one of redimnet, redimnet2"):
        release_url("b2", "lm", arch="redimnet3")


def test_known_sums_are_of_published_files():
    for url, known in KNOWN_SHA256.items():
        model, dataset, train_type = url.removeprefix(V1).removesuffix(".pt").split("-")
        assert release_url(model, train_type, dataset) == url and len(bytes.fromhex(known)) == 32


def test_licence_note():
    assert licence_note("b2-vox2-ft_lm.pt") is None
    assert licence_note("/a/vb2/b2-vox2-ft_lm.pt") is None
    for name in ("M-vb2+vox2+cnc-ft_mix.pt", "S-vb2-ptn.pt", "b6-vb2+vox2_v0-lm.pt"):
        assert "CC BY-NC-SA 4.0" in (licence_note(name) or "") and name in (licence_note(name) or "")


@pytest.mark.parametrize(
    "url",
    ["https://[", "https:///x.pt", "https://host:99999/x.pt", f"https://{'a' * 70}.org/x.pt", "https://host:x/a.pt"],
)
def test_addresses_that_no_server_has(tmp_path, url):
    with pytest.raises(UserError, match="is no address of a file"):
        download.fetch(url, tmp_path)


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        download.fetch(f"https://localhost:9/{'x' * 300}.pt", tmp_path)
