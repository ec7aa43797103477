"""Notices of Google Compute Engine that this machine is about to be taken away: a spot VM's, and of maintenance.

The metadata server of a VM answers a request that waits for a change when there is one. Spot VMs also get an ACPI
signal, upon which the system sends SIGTERM; this also comes where a container or a shell keeps that away. See
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice and
https://cloud.google.com/compute/docs/instances/create-use-spot.
"""

import contextlib
import http.client
import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

PRODUCT = Path("/sys/class/dmi/id/product_name")
SERVER = "metadata.google.internal"
# Key below `instance/` -> the value that announces the end. A VM that migrates goes on.
NOTICES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
# After this time the server answers though nothing has changed.
WAIT_SECONDS = 300
RETRY_SECONDS = 5.0


def server() -> str | None:
    """Return HOST[:PORT] of this machine's metadata server, or None outside of Compute Engine.

    The variables are those of Google's own libraries: `GCE_METADATA_HOST` names a server, and `NO_GCE_CHECK=true`
    says that there is none.
    """
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    try:
        product = PRODUCT.read_text()
    except OSError:  # Not every system has the file.
        return None
    return SERVER if product.startswith("Google") else None


@contextlib.contextmanager
def watched(notify: Callable[[str], None]) -> Iterator[None]:
    """Call `notify(reason)`, from another thread, for every notice that arrives during the block.

    Outside of Compute Engine this does nothing.
    """
    done = threading.Event()
    if host := server():
        for key, value in NOTICES.items():
            # Not waited for at the end, since a request may wait for minutes.
            threading.Thread(
                target=_watch, args=(host, key, value, notify, done), name=f"notices of {key}", daemon=True
            ).start()
    try:
        yield
    finally:
        done.set()


def _watch(host: str, key: str, announced: str, notify: Callable[[str], None], done: threading.Event) -> None:
    """Call `notify` when the value of `key` is the `announced` one."""
    etag = "0"  # The first answer comes at once.
    warned = False
    while not done.is_set():
        try:
            value, etag = _read(host, key, etag)
        except (OSError, http.client.HTTPException) as error:
            if not warned:
                warned = True
                logger.warning(f"The metadata server {host} does not answer ({error}); its notices may be missed.")
            done.wait(RETRY_SECONDS)
            continue
        if value == announced and not done.is_set():
            notify(f"Compute Engine announced {key} = {value}")
            return


def _read(host: str, key: str, etag: str) -> tuple[str, str]:
    """Return (value, etag) of `key` when its etag is not the given one any more, or after `WAIT_SECONDS`."""
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{key}"
        f"?wait_for_change=true&timeout_sec={WAIT_SECONDS}&last_etag={etag}",
        headers={"Metadata-Flavor": "Google"},
    )
    # The server is on the machine itself: no proxy of the environment may come between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=WAIT_SECONDS + 30) as answer:
        return answer.read().decode().strip(), answer.headers.get("ETag", "0")
