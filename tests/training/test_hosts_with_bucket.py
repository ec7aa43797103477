"""Hosts with their own disks and a bucket: one gets a notice of its end, and later the coordinating one is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bucket_server
import pytest
import training_runs

from redimnet_jax import addresses

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SECONDS = 240.0


class Machine(BaseHTTPRequestHandler):
    """The metadata server of a spot VM, which announces the end when `ends` is set."""

    ends = threading.Event()

    def do_GET(self):
        waits = "preempted" not in self.path or "last_etag=0" not in self.path
        if waits:
            self.ends.wait(SECONDS)
        value = "TRUE" if "preempted" in self.path and waits else "FALSE"
        self.send_response(200)
        self.send_header("ETag", value)
        self.end_headers()
        self.wfile.write(value.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket():
    with bucket_server.served() as url:
        yield bucket_server.make_bucket(url)


@pytest.fixture
def metadata():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Machine)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    Machine.ends.set()
    server.shutdown()


@pytest.fixture
def start(tmp_path):
    started = []
    settings = training_runs.SETTINGS | training_runs.write_data(tmp_path / "data") | {"epochs": 200}

    def start(workdir: str, **more: str) -> list[subprocess.Popen]:
        """Two hosts; the second one has `more` in its environment."""
        command = [sys.executable, "-u", "train.py", "--config=configs/projection_only.py", f"--workdir={workdir}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()] + ["--config.cache.crops=0"]
        command += [f"--coordinator=localhost:{bucket_server.free_port()}", "--processes=2", "--join_seconds=240"]
        hosts = []
        for index in (0, 1):
            environment = bucket_server.environment(tmp_path / f"disk{index}") | (more if index else {})
            with open(tmp_path / f"log{index}", "w") as log:
                command_here = [*command, f"--process_id={index}"]
                hosts.append(
                    subprocess.Popen(command_here, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        started.extend(hosts)
        return hosts

    yield start
    for process in started:
        process.kill()


def wait_for(condition, *processes: subprocess.Popen) -> None:
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit and all(process.poll() is None for process in processes)
        time.sleep(0.05)


def ends(processes: list[subprocess.Popen], tmp_path: Path) -> list[tuple[int, str]]:
    """Exit codes and last lines."""
    codes = [process.wait(SECONDS) for process in processes]
    return [(code, (tmp_path / f"log{index}").read_text().splitlines()[-1]) for index, code in enumerate(codes)]


def child(process: subprocess.Popen) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def test_a_notice_to_one_host_and_the_death_of_the_other(bucket, start, metadata, tmp_path):
    workdir = f"{bucket}/run"
    checkpoint = Path(workdir) / "checkpoints" / "4"
    hosts = start(workdir, GCE_METADATA_HOST=metadata)
    wait_for(lambda: addresses.is_folder(checkpoint), *hosts)
    Machine.ends.set()
    for code, last in ends(hosts, tmp_path):
        assert code == 0 and "everything is saved" in last
    assert "Compute Engine announced preempted = TRUE" in (tmp_path / "log1").read_text()
    assert not addresses.is_file(Path(workdir) / "results.json")

    hosts = start(workdir)
    wait_for(lambda: "resumed at step" in (tmp_path / "log0").read_text(), *hosts)
    os.kill(child(hosts[0]), signal.SIGKILL)
    since = time.monotonic()
    (first, killed), (second, aborted) = ends(hosts, tmp_path)
    assert time.monotonic() - since < 30
    assert first == 1 and killed.startswith("error: SIGKILL ended this process: ")
    assert second == 1 and aborted.startswith("error: SIGABRT ended this process: most likely another process")
