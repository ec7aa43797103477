"""Where the published weights lie, and how to fetch them so that what arrives is what was meant."""

import errno
import hashlib
import http.client
import os
import re
import shlex
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from redimnet_jax import locks
from redimnet_jax.errors import UserError

_BASES = {
    "redimnet": "https://github.com/IDRnD/ReDimNet/releases/download/latest/",
    "redimnet2": "https://github.com/PalabraAI/redimnet2/releases/download/v1.0.0/",
}
# Models, data set, training types: EVALUATION.md of IDRnD/ReDimNet and README.md of PalabraAI/redimnet2.
_PUBLISHED = {
    "redimnet": [
        ("b0 b1 b2 b3 b4 b5 b6", "vox2", "ptn ft_lm"),
        ("S M", "vb2", "ptn"),
        ("S M", "vb2+vox2+cnc", "ft_mix"),
    ],
    "redimnet2": [
        ("b0 b1 b2 b3 b4 b5 b6", "vox2", "ptn lm"),
        ("b6", "vb2+vox2_v0", "ptn lm"),
    ],
}
# The release `latest` can be changed under the same URL: only the sum says which weights these are.
KNOWN_SHA256 = {
    _BASES["redimnet"] + name: sha256
    for name, sha256 in {
        "b2-vox2-ft_lm.pt": "c9b6bb2f6747caa28a41eaf2e372d66b0d1563baef186d18f5e99abd5e71e06f",
        "b2-vox2-ptn.pt": "c18a42926878bc8ac079623fbf36f0bc8054cda1199e96fbe1a3f8e131796647",
        "b5-vox2-ft_lm.pt": "8b0c11bbf5a3a8bb39e5c072c4192d0b694d8c447cf126d4cd3c7346a04b39c8",
    }.items()
}
_TIMEOUT_S = 30
_BAR = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": None}  # None: only on a terminal
_RETRIED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def release_url(model: str, train_type: str, dataset: str = "vox2", arch: str = "redimnet") -> str:
    """Return the URL of published weights, such as b2-vox2-ft_lm.pt; a UserError lists what there is."""
    if arch not in _PUBLISHED:
        raise UserError(f"There is no architecture {arch!r}: choose one of {', '.join(_PUBLISHED)}.")
    for models, data, train_types in _PUBLISHED[arch]:
        if model in models.split() and dataset == data and train_type in train_types.split():
            return f"{_BASES[arch]}{model}-{dataset}-{train_type}.pt"
    choices = "; ".join(
        f"model {' or '.join(models.split())} with dataset {data} and train type {' or '.join(types.split())}"
        for models, data, types in _PUBLISHED[arch]
    )
    raise UserError(
        f"No {arch} weights are published for model {model!r}, dataset {dataset!r} and "
        f"train type {train_type!r}: choose {choices}."
    )


def licence_note(filename: str) -> str | None:
    """Return the terms that weights of this name carry beyond the MIT licence of the code, if any."""
    if "vb2" in Path(filename).name:
        return (
            f"{Path(filename).name} was trained on VoxBlink2 and carries its licence, "
            "CC BY-NC-SA 4.0: no commercial use."
        )
    return None


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, folder: str | os.PathLike[str], sha256: str | None = None, retries: int = 5) -> Path:
    """Download `url` into `folder`, unless it is there already, and return the file's path.

    The file is checked against `sha256`, or else KNOWN_SHA256, or else only its length is. What has arrived
    is kept in `<name>.part`, beside the server's ETag for it in `<name>.part.etag`, and is continued after an
    interruption if the server still has the same file; a broken connection is retried `retries` times.
    Raises UserError when the file does not exist, cannot be reached or written, or has the wrong sum.
    """
    name = _file_name(url)
    if name is None:
        raise UserError(f"{url!r} is no address of a file: give one that starts with https:// and ends in a name.")
    path = Path(folder) / name
    part = path.with_name(name + ".part")
    expected = sha256 or KNOWN_SHA256.get(url)
    try:
        if path.is_file():
            verify(path, expected, f"delete {path} to download it again")
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(path.parent, name=f"{name}.lock"):
            _download(url, part, retries)
            try:
                verify(part, expected, "it was removed, so try again, or check which sum is meant")
            except UserError:
                _discard(part)
                raise
            os.replace(part, path)
            _discard(part)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        advice = "free some space and run again to continue" if full else "choose another folder"
        raise UserError(f"{path} cannot be written ({error.strerror or error}): {advice}.") from error
    return path


def conversion_command(output: str | Path) -> str:
    """Return the command that writes published weights to `output`: those of its name, such as weights/b6, or b2."""
    name = Path(output).name
    models = {
        model: (data, types.split()[-1]) for models, data, types in _PUBLISHED["redimnet"] for model in models.split()
    }
    if name not in models:
        name, output = "b2", "weights/b2"
    dataset, train_type = models[name]
    data = "" if dataset == "vox2" else f" --dataset={dataset}"
    output = shlex.quote(str(output))
    return f"python convert_torch_weights.py --model={name} --train_type={train_type}{data} --output={output}"


def _file_name(url: str) -> str | None:
    """Return the last part of the path of `url`, or None when it is no address of a file."""
    if not re.fullmatch("https?://[!-~]+", url):
        return None
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, a port beyond 65,535, a label of more than 63 characters
        return None
    name = parts.path.rpartition("/")[2]
    return name if has_host and name not in ("", ".", "..") else None


def verify(path: Path, expected: str | None, advice: str) -> None:
    """Raise UserError, ending with `advice`, unless the SHA-256 of `path` is `expected` or none is expected."""
    if expected and (actual := sha256(path)) != expected.lower():
        raise UserError(f"{path} has the SHA-256 {actual} in place of {expected}: {advice}.")


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)


def _pause(attempt: int) -> None:
    time.sleep(min(2**attempt, 30))


def _download(url: str, part: Path, retries: int) -> None:
    problem: Exception | None = None
    for attempt in range(retries + 1):
        try:
            return _download_once(url, part)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise UserError(f"{url} does not exist: check the name.") from error
            if error.code not in (408, 429) and error.code < 500:
                raise UserError(f"{url} was refused ({error}): check the address and your network.") from error
            problem = error
        except _RETRIED as error:
            problem = error
        except ValueError as error:  # of an address that the server leads to, or of its headers
            raise UserError(
                f"{url} has a server that answers what is not HTTP ({error}): check the address."
            ) from error
        if attempt < retries:
            _pause(attempt)
    raise UserError(
        f"{url} could not be downloaded in {retries + 1} tries ({problem}): "
        f"check your network and run again to continue {part}."
    ) from problem


def _download_once(url: str, part: Path) -> None:
    have, etag = 0, ""
    if part.exists() and _etag_file(part).exists():
        have, etag = part.stat().st_size, _etag_file(part).read_text(encoding="latin-1")
        if not re.fullmatch('"[!-~]*"', etag):  # damaged: it would be no header
            have, etag = 0, ""
    # If-Range makes the server send the whole file if it is no longer the one that was begun.
    resume = {"Range": f"bytes={have}-", "If-Range": etag} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "redimnet-jax", **resume})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            error.close()
            return  # all of it had arrived
        _discard(part)
        raise ConnectionError("the server has a shorter file now") from error
    with response:
        resumed = have > 0 and response.status == 206
        if resumed:
            found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != have or response.headers.get("ETag", etag) != etag:
                _discard(part)
                raise ConnectionError("the server continued some other file")
            total: int | None = int(found[2])
        else:
            have, total = 0, response.length
        with part.open("ab" if resumed else "wb") as file:
            if not resumed:  # only now, when no byte of an older file is left in the part
                _write_etag(part, response.headers.get("ETag", ""))
            _save(response, file, tqdm(total=total, initial=have, desc=part.stem, **_BAR))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"only {part.stat().st_size} of {total} bytes arrived")


def _write_etag(part: Path, etag: str) -> None:
    _etag_file(part).unlink(missing_ok=True)
    if re.fullmatch('"[!-~]*"', etag):  # a weak one, W/"...", does not promise the same bytes
        _etag_file(part).write_text(etag, encoding="latin-1")


def _save(response: http.client.HTTPResponse, file: BinaryIO, bar: tqdm) -> None:
    with bar:
        while piece := response.read(1 << 18):
            file.write(piece)
            bar.update(len(piece))
