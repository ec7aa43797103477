"""Builds the page of examples/browser and uses it in a headless browser."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# The browser asks nobody for anything by itself, and its microphone is a file.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
]


def require() -> None:
    """Skip the test where the page cannot be built or used; install the packages of the page where they are not."""
    missing = [name for name in ("node", "npm") if not shutil.which(name)] + ([] if CHROMIUM else ["chromium"])
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found")
    if (FOLDER / "node_modules" / "playwright-core").exists():
        return
    command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=20000"]
    ended = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=120)
    if ended.returncode:
        pytest.skip(f"npm cannot install the packages of the page: {ended.stderr[:200]}")


def bundle(site: Path) -> None:
    """Write the page without a model to the folder `site`."""
    _run(["node", FOLDER / "bundle.js", site])


def export(site: Path, *arguments: str) -> dict[str, Any]:
    """Write a model for the page in `site`, with the `arguments` of export_model.py; return its metadata."""
    script = str(FOLDER / "export_model.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, f"--output={site / 'model'}", *arguments])
        runpy.run_path(script, run_name="__main__")
    return json.loads((site / "model" / "model.json").read_text())


def drive(steps: list[list[Any]], microphone: Path) -> dict[str, Any]:
    """Take the steps of examples/browser/drive.js, with a file as the microphone; return what it returns."""
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"]
    job = {"chromium": CHROMIUM, "flags": flags, "steps": steps}
    return json.loads(_run(["node", FOLDER / "drive.js"], input=json.dumps(job, default=str)))


def _run(command: list[Any], **options: Any) -> str:
    ended = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=120, **options)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
