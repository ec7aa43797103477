"""A tree of speakers in a bucket, which has no folders but names with slashes."""

import collections
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from redimnet_jax import addresses
from redimnet_jax.data.index import Bad, Entries
from redimnet_jax.data.tree import examine, ignored_kind, is_audio, parallel

# Requests at a time; each lists a speaker, or up to 1,000 files of one.
_LISTERS = 32


@dataclasses.dataclass(frozen=True)
class BucketTree:
    """A tree below the address `root`. Names of which a part begins with a dot are ignored."""

    root: Path

    def identity(self) -> dict[str, Any]:
        # A bucket has no time of change of a folder, so this lists all files: 7,000 speakers take seconds.
        listing = [(name, entry.size, entry.version) for name, entry in self._listing.items()]
        return {"tree": addresses.of(self.root), "files": hashlib.sha256(json.dumps(listing).encode()).hexdigest()}

    def entries(self, workers: int, progress: bool) -> Entries:
        names: list[str] = []
        bad: list[Bad] = []
        ignored: collections.Counter[str] = collections.Counter()
        speakers: dict[str, int] = {}
        for name in self._listing:
            folders = name.split("/")[:-1]
            if any(folder.startswith(".") for folder in folders):
                continue
            if folders:
                speakers.setdefault(folders[0], 0)
            if not is_audio(name):
                ignored[ignored_kind(name.rpartition("/")[2])] += 1
            elif not folders:
                bad.append(Bad(name, "in no speaker's folder", "expected is speaker/utterance"))
            else:
                names.append(name)
                speakers[folders[0]] += 1
        samples, unusable = examine(names, self.fetch, workers, progress)
        empty = [speaker for speaker, count in speakers.items() if not count]
        of_names = [name.partition("/")[0] for name in names]
        return Entries(names, of_names, samples, bad + unusable, empty_speakers=empty, ignored=ignored)

    def fetch(self, name: str, record: int | None) -> Path:
        return self.root / name

    def seeks(self, name: str) -> bool:
        return False  # Every reading fetches the whole file.

    @functools.cached_property
    def _listing(self) -> dict[str, addresses.Entry]:
        address = addresses.of(self.root)
        assert address is not None
        folders, files = addresses.children(address)

        def below(folder: str) -> dict[str, addresses.Entry]:
            found = addresses.files_below(f"{address}/{folder}")
            return {f"{folder}/{name}": entry for name, entry in found.items()}

        listing = {name: addresses.stat(f"{address}/{name}") for name in files}
        for part in parallel(below, folders, _LISTERS, False, "speakers"):
            listing |= part
        return dict(sorted(listing.items()))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}  # Workers do not need the listing.
