"""Local copies of folders in buckets; most tests keep their objects in this process's memory."""

import itertools
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import bucket_server
import fsspec
import numpy as np
import pytest
from refusals import refusal

from redimnet_jax import addresses, buckets, leases
from redimnet_jax.buckets import Layout
from redimnet_jax.errors import UserError
from redimnet_jax.mirrored_files import SEAL

LAYOUT = Layout(whole=("checkpoints/*", "best-*"), apart=("compiled/*",), skipped=("features",))


@pytest.fixture
def address():
    return f"memory://bucket/{secrets.token_hex(4)}"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Give a function that goes on on the machine of a name, which has a disk of its own."""

    def use(name: str) -> None:
        monkeypatch.setenv(buckets.STAGING, str(tmp_path / f"disk-{name}"))

    use("a")
    return use


def write(folder: Path, **content: str) -> None:
    for name, text in content.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def epoch(folder: Path, number: int) -> None:
    """Do to a workdir what an epoch does to it, with its number in every file."""
    text = str(number)
    write(folder, history=text, events=text)
    for base in (f".checkpoints-{text}", f".best-{text}"):
        write(folder / base, a=text * 10, deep__b=text * 20)
    (folder / f".best-{text}").rename(folder / f"best-{text}")
    (folder / ".best").symlink_to(f"best-{text}")
    (folder / ".best").rename(folder / "best")
    # A checkpoint names the best model, which is there by then.
    time.sleep(0.01)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / f".checkpoints-{text}").rename(folder / "checkpoints" / text)
    for old in (folder / "checkpoints" / str(number - 1), folder / f"best-{number - 1}"):
        if old.exists():
            old.rename(folder / ".old")
            for path in sorted((folder / ".old").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (folder / ".old").rmdir()


def content(folder: Path) -> dict[str, str]:
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_text() for name, path in found.items()}


def objects(address: str) -> set[str]:
    return {name for name in addresses.files_below(address) if not name.startswith(buckets.CONTROL)}


def test_what_is_an_address():
    assert addresses.of("gs://b/run/") == addresses.of(Path("gs://b/run")) == "gs://b/run"
    assert addresses.of(Path("memory://b") / "x") == "memory://b/x"
    assert addresses.of(Path("file:///data/x")) == "file:///data/x"
    for path in ("/data/vox", "runs/b2", "tfds:speaker_corpus/x:train", "synthetic:2x2x2", "C:/x", ""):
        assert addresses.of(path) is None
    assert addresses.repaired(f"there is no {Path('gs://b/x')}, a.b: c") == "there is no gs://b/x, a.b: c"


def test_a_local_folder_is_itself(tmp_path):
    with buckets.writing(tmp_path / "run") as mirror:
        assert (mirror.local, mirror.address) == (tmp_path / "run", None)
        mirror.push()
        mirror.pull()
    assert buckets.staged(tmp_path) == tmp_path and list(tmp_path.iterdir()) == []


def test_another_machine_gets_what_was_pushed(address, machine):
    with buckets.writing(address, LAYOUT) as mirror:
        epoch(mirror.local, 1)
        mirror.push()
        epoch(mirror.local, 2)
        write(mirror.local, features__x="1", compiled__p="program", **{".hidden": "part"})
        wanted = {name: text for name, text in content(mirror.local).items() if name[0] not in ".f"}
    machine("b")
    with buckets.writing(address, LAYOUT) as mirror:
        assert content(mirror.local) == wanted and os.readlink(mirror.local / "best") == "best-2"
        epoch(mirror.local, 3)
    assert {name.partition("/")[0] for name in objects(address)} == {
        *("best-3", "best.link", "checkpoints", "compiled", "events", "history"),
    }
    assert {name for name in objects(address) if name.startswith("checkpoints")} == {
        *(f"checkpoints/3/{name}" for name in ("a", "deep/b", SEAL)),
    }


def test_only_changes_are_uploaded_in_their_order(address, monkeypatch):
    uploaded: list[str] = []
    upload = addresses.upload
    monkeypatch.setattr(addresses, "upload", lambda path, where: (uploaded.append(path.name), upload(path, where)))
    with buckets.writing(address, LAYOUT) as mirror:
        write(mirror.local, z="", a="")
        write(mirror.local, m="")
        os.replace(mirror.local / "a", mirror.local / "b")
        mirror.push()
        assert uploaded == ["z", "m", "b"]
        uploaded.clear()
        write(mirror.local, m="longer")
        mirror.push()
        mirror.push()
    assert uploaded == ["m"]


class Interrupted(Exception):
    """The process is killed here."""


def test_an_interrupted_push_leaves_a_complete_state(address, machine, monkeypatch, caplog):
    """Whichever request is the last one, a reader finds a complete model, and another machine a complete run."""
    last = itertools.count()
    for limit in itertools.count(1, 2):
        where = f"{address}/{limit}"
        machine(f"a{limit}")
        with buckets.writing(where, LAYOUT) as mirror:
            epoch(mirror.local, 1)
        with monkeypatch.context() as patch, buckets.writing(where, LAYOUT) as mirror:
            epoch(mirror.local, 2)
            last = itertools.count(1)

            def until(original, limit=limit, last=last):
                def call(*arguments, **options):
                    if next(last) > limit:
                        raise Interrupted
                    return original(*arguments, **options)

                return call

            for name in ("upload", "write", "remove"):
                patch.setattr(addresses, name, until(getattr(addresses, name)))
            try:
                mirror.push()
                ended = True
            except Interrupted:
                ended = False
            patch.undo()
            # The lease is given back, but nothing else is done.
            mirror._lease = None
        machine(f"b{limit}")
        best = content(buckets.staged(f"{where}/best"))
        assert best in ({"a": "1" * 10, "deep/b": "1" * 20}, {"a": "2" * 10, "deep/b": "2" * 20})
        with buckets.writing(where, LAYOUT) as mirror:
            kept = [path.name for path in (mirror.local / "checkpoints").iterdir()]
            assert kept and all(
                content(mirror.local / "checkpoints" / name) == {"a": name * 10, "deep/b": name * 20} for name in kept
            )
            assert os.readlink(mirror.local / "best") >= f"best-{max(kept)}"
            epoch(mirror.local, 3)
        assert {name for name in objects(where) if name.startswith("checkpoints")} >= {
            *(f"checkpoints/3/{name}" for name in ("a", "deep/b", SEAL)),
        }
        # The machine that was interrupted, which lost the bucket to another one, takes what is there.
        machine(f"a{limit}")
        with buckets.writing(where, LAYOUT) as mirror:
            assert os.readlink(mirror.local / "best") == "best-3"
        if ended:
            break
    assert limit > 12


def test_the_same_machine_goes_on_from_its_own_folder(address, machine):
    with buckets.writing(address, LAYOUT) as mirror:
        epoch(mirror.local, 1)
        mirror.push()
        epoch(mirror.local, 2)
        mirror._lease = None  # Nothing is pushed any more, as if the process were killed.
    with buckets.writing(address, LAYOUT) as mirror:
        assert os.readlink(mirror.local / "best") == "best-2"
        mirror._lease = None
    fsspec.filesystem("memory").rm(address, recursive=True)
    with buckets.writing(address, LAYOUT) as mirror:
        assert content(mirror.local) == {}


def test_a_damaged_folder_is_refused_and_an_incomplete_one_ignored(address, machine, caplog):
    with buckets.writing(address, LAYOUT) as mirror:
        epoch(mirror.local, 1)
        write(mirror.local / "checkpoints/5", a="5")
    whole = addresses.read(f"{address}/checkpoints/1/a")
    for damage, told in ((b"1" * 9, "has 9 bytes but had 10"), (b"1" * 9 + b"2", "does not match the checksum")):
        addresses.write(f"{address}/checkpoints/1/a", damage)
        machine(told)
        assert f"{address}/checkpoints/1/a is damaged: it {told}" in refusal(buckets.staged, address)
    addresses.write(f"{address}/checkpoints/1/a", whole)
    addresses.write(f"{address}/checkpoints/5/{SEAL}", json.dumps({"complete": False}).encode())
    machine("c")
    with caplog.at_level(logging.WARNING, "redimnet_jax"):
        assert "checkpoints/5/a" not in content(buckets.staged(address))
    assert f"{address}/checkpoints/5 is incomplete" in caplog.text
    assert "is incomplete" in refusal(buckets.staged, f"{address}/checkpoints/5")


def test_a_folder_that_another_program_copied_is_read(address):
    addresses.write(f"{address}/weights/arrays/x", b"1")
    assert content(buckets.staged(f"{address}/weights")) == {"arrays/x": "1"}


def test_a_local_copy_is_brought_up_to_date(address, monkeypatch):
    fetched: list[str] = []
    download = addresses.download
    monkeypatch.setattr(addresses, "download", lambda where, path: (fetched.append(where), download(where, path)))
    addresses.write(f"{address}/list.txt", b"one")
    for text in ("one", "one", "two!"):
        addresses.write(f"{address}/list.txt", text.encode()) if text != "one" else None
        assert buckets.staged(f"{address}/list.txt").read_text() == text
    assert len(fetched) == 2
    assert "There is no file or folder memory://" in refusal(buckets.staged, f"{address}/none")


def test_a_new_folder_is_whole_or_not_there(address, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UserError), buckets.new_folder(f"{address}/w") as folder:
        write(folder, a="1", b="2")
        patch.setattr(addresses, "upload", lambda *_: (_ for _ in ()).throw(UserError("There is no network.")))
    assert "is incomplete" in refusal(buckets.staged, f"{address}/w")
    with buckets.new_folder(f"{address}/w") as folder:
        write(folder, a="3")
    assert content(buckets.staged(f"{address}/w")) == {"a": "3"}
    assert "exists already" in refusal(lambda: buckets.new_folder(f"{address}/w").__enter__())


def test_what_is_removed_during_a_push_is_no_error(address, monkeypatch):
    with buckets.writing(address, LAYOUT) as mirror:
        epoch(mirror.local, 1)
        upload = addresses.upload

        def replaced_meanwhile(path, where):
            monkeypatch.setattr(addresses, "upload", upload)
            epoch(mirror.local, 2)
            upload(path, where)

        monkeypatch.setattr(addresses, "upload", replaced_meanwhile)
        mirror.push()
        assert addresses.read(f"{address}/best.link") == b"best-2"
    assert not any(name.startswith("best-1") for name in objects(address))


def test_a_failed_push_is_a_warning_and_made_up_for(address, machine, monkeypatch, caplog):
    with buckets.writing(address, LAYOUT) as mirror:
        epoch(mirror.local, 1)
        with monkeypatch.context() as patch:
            patch.setattr(addresses, "upload", lambda *_: (_ for _ in ()).throw(UserError("There is no network.")))
            mirror.commit()
            assert "There is no network" in caplog.text
            assert "no network" in refusal(mirror.push)
        mirror.commit()
        machine("b")
        assert os.readlink(buckets.staged(address) / "best") == "best-1"


def test_one_process_writes_to_a_folder(address):
    with buckets.writing(address):
        told = refusal(lambda: buckets.writing(address).__enter__())
        assert told.startswith(f"{address} is being written by another process ({os.getpid()} on ")
    with buckets.writing(address):
        pass


def holder(**changes) -> bytes:
    return json.dumps(leases._this_process() | {"token": "t", "renewals": 0} | changes).encode()


def test_the_lease_of_a_dead_process_is_free_at_once(address, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1000.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for dead in ({"pid": ended.pid}, {"started": "1"}):
        addresses.write(f"{address}/{buckets.LEASE}", holder(**dead))
        with buckets.writing(address):
            pass


def test_the_lease_of_another_machine_runs_out(address, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "redimnet_jax")
    lease = f"{address}/{buckets.LEASE}"
    addresses.write(lease, holder(machine="other", host="other"))
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    with buckets.writing(address):
        assert "on other); waiting for up to" in caplog.text
    addresses.write(lease, holder(machine="other", host="other"))
    monkeypatch.setattr(
        leases.time, "sleep", lambda _: addresses.write(lease, holder(machine="other", host="other", renewals=1))
    )
    assert "on other); wait until it has ended" in refusal(lambda: buckets.writing(address).__enter__())


def test_a_run_that_lost_its_lease_does_not_push(address):
    with pytest.raises(leases.LostError, match="taken over by another process"), buckets.writing(address) as mirror:
        write(mirror.local, a="1")
        addresses.write(f"{address}/{buckets.LEASE}", holder(machine="other"))
        mirror.commit()
    assert objects(address) == set()


def test_a_lease_is_renewed(address, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    with buckets.writing(address):
        before = addresses.read(f"{address}/{buckets.LEASE}")
        limit = itertools.count()
        while addresses.read(f"{address}/{buckets.LEASE}") == before and next(limit) < 1000:
            leases.time.sleep(0.01)
        assert addresses.read(f"{address}/{buckets.LEASE}") != before


def test_what_cannot_be_reached_is_one_sentence(monkeypatch):
    assert "begins with nothing://, which fsspec does not know" in refusal(buckets.staged, "nothing://b/x")

    addresses._file_system.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gcsfs.core", None)
        assert "run pip install 'redimnet_jax[gcs]'" in refusal(buckets.staged, "gs://b/x")
    denied = OSError("Forbidden: b/x\nAnonymous caller does not have storage.objects.list access")
    for error, told in ((denied, "may not be accessed"), (TimeoutError("no answer"), "check the network")):

        def failing(*_, error=error, **__):
            raise error

        monkeypatch.setattr(fsspec, "filesystem", failing)
        assert told in refusal(buckets.staged, "s3://b/x")
    addresses._file_system.cache_clear()


def test_messages_name_addresses(address):
    with buckets.writing(address) as mirror:
        assert buckets.readable(f"see {mirror.local}/history.json") == f"see {address}/history.json"


@pytest.fixture(scope="module")
def bucket():
    with bucket_server.served() as url:
        yield bucket_server.make_bucket(url)


def test_a_real_server_keeps_folders_links_and_leases(bucket, machine):
    with buckets.writing(f"{bucket}/run", LAYOUT) as mirror:
        epoch(mirror.local, 1)
        mirror.push()
        assert "is being written" in refusal(lambda: buckets.writing(f"{bucket}/run").__enter__())
        epoch(mirror.local, 2)
        wanted = content(mirror.local)
    machine("b")
    assert content(buckets.staged(f"{bucket}/run/best")) == {"a": "2" * 10, "deep/b": "2" * 20}
    with buckets.writing(f"{bucket}/run", LAYOUT) as mirror:
        assert content(mirror.local) == wanted
    nowhere = "gs://no-such-bucket/run"
    assert f"There is no bucket {Path(nowhere).parent}".replace(":/", "://") in refusal(
        lambda: buckets.writing(nowhere).__enter__()
    )
    assert "There is no file or folder" in refusal(buckets.staged, nowhere)


def test_large_files_come_back_whole(bucket, tmp_path):
    data = np.random.default_rng(0).bytes(7_000_000)
    (tmp_path / "large").write_bytes(data)
    addresses.upload(tmp_path / "large", f"{bucket}/large")
    assert buckets.staged(f"{bucket}/large").read_bytes() == data
