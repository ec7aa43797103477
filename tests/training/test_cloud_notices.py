"""Notices of a metadata server, which is a small one on the loopback address here."""

import http.server
import threading
import time
import urllib.parse

import pytest

from redimnet_jax.training import cloud_notices
from redimnet_jax.training.preemption import StopRequest


class Metadata:
    """Values by key; a request waits until the ETag of its key is not the given one."""

    def __init__(self):
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.requests = 0
        self.failures = 0
        self.changed = threading.Condition()

    def put(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()


@pytest.fixture
def metadata(monkeypatch):
    state = Metadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(parts.query))
            assert parts.path.startswith("/computeMetadata/v1/instance/") and query["wait_for_change"] == "true"
            key = parts.path.rpartition("/")[2]
            with state.changed:
                state.requests += 1
                if state.failures or self.headers["Metadata-Flavor"] != "Google":
                    state.failures -= 1
                    self.send_error(503)
                    return
                state.changed.wait_for(lambda: f"e{state.values[key]}" != query["last_etag"], timeout=10)
                value = state.values[key]
            self.send_response(200)
            self.send_header("ETag", f"e{value}")
            self.end_headers()
            self.wfile.write(value.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(cloud_notices, "RETRY_SECONDS", 0.01)
    yield state
    server.shutdown()
    server.server_close()


def wait_until(condition) -> bool:
    limit = time.monotonic() + 10
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("key", "value"), [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")]
)
def test_a_notice_asks_the_run_to_stop(metadata, caplog, key, value):
    stop = StopRequest()
    with cloud_notices.watched(stop.request):
        assert wait_until(lambda: metadata.requests >= 4)  # Both keys were read, and are waited for.
        assert not stop.requested
        metadata.put("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
        assert wait_until(lambda: metadata.requests >= 5) and not stop.requested
        metadata.put(key, value)
        assert wait_until(lambda: stop.requested)
    assert f"{key} = {value}; the run saves and stops." in caplog.text


def test_a_server_that_fails_is_asked_again_and_named_once_a_key(metadata, caplog):
    metadata.failures = 6
    metadata.put("preempted", "TRUE")
    stop = StopRequest()
    with cloud_notices.watched(stop.request):
        assert wait_until(lambda: stop.requested)
    assert 1 <= caplog.text.count("does not answer (HTTP Error 503") <= 2


def test_a_notice_after_the_block_is_none(metadata):
    stop = StopRequest()
    with cloud_notices.watched(stop.request):
        assert wait_until(lambda: metadata.requests >= 4)
    metadata.put("preempted", "TRUE")
    time.sleep(0.2)
    assert not stop.requested


def test_only_machines_of_compute_engine_have_a_server(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    monkeypatch.setattr(cloud_notices, "PRODUCT", tmp_path / "product_name")
    assert cloud_notices.server() is None
    before = threading.active_count()
    with cloud_notices.watched(pytest.fail):
        assert threading.active_count() == before
    cloud_notices.PRODUCT.write_text("Google Compute Engine\n")
    assert cloud_notices.server() == "metadata.google.internal"
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert cloud_notices.server() is None
    cloud_notices.PRODUCT.write_text("Standard PC\n")
    monkeypatch.delenv("NO_GCE_CHECK")
    assert cloud_notices.server() is None
