"""Check that the data are those that the published figures are about, before anything takes days."""

import os
from pathlib import Path
from typing import Any

from recipes.voxceleb.dataset import Dataset, Part, TrialList
from redimnet_jax import trials
from redimnet_jax.data.tree import is_audio
from redimnet_jax.errors import UserError, shown

TRAINED_ON = "vox2_dev"
EVALUATED = ("vox1_test", "vox1_dev")  # where the recordings of the trials are
FOR_CALIBRATION = "vox2_test"


def check(content: Dataset, data: Path, lists: Path, accept_counts: bool) -> dict[str, Any]:
    """Return the counts of all parts and lists; raise UserError where they are not what they should be.

    Recordings, speakers and trials have to be as many as published, unless `accept_counts`. All recordings of the
    trials have to be there, and no speaker may be trained on and evaluated or calibrated on.
    """
    speakers = {part.name: _utterances(data / part.name) for part in content.parts if (data / part.name).is_dir()}
    if not accept_counts:
        for part in content.parts:
            if part.name in speakers:
                _check_counts(part, data / part.name, speakers[part.name])
    for name in (*EVALUATED, FOR_CALIBRATION):
        _check_apart(data, TRAINED_ON, name, speakers)
    for name in EVALUATED:
        _check_apart(data, FOR_CALIBRATION, name, speakers)
    counts: dict[str, Any] = {
        name: {"utterances": sum(each.values()), "speakers": len(each)} for name, each in speakers.items()
    }
    return counts | {each.name: _check_list(each, lists, data, accept_counts) for each in content.lists}


def _utterances(folder: Path) -> dict[str, int]:
    """Return how many recordings every speaker has, or every folder of a folder of noises."""
    counts = {}
    for speaker in sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        below = os.walk(folder / speaker, followlinks=True)
        counts[speaker] = sum(is_audio(name) for _, _, names in below for name in names)
    return counts


def _check_counts(part: Part, folder: Path, speakers: dict[str, int]) -> None:
    for what, found, published in (
        ("utterances", sum(speakers.values()), part.utterances),
        ("speakers", len(speakers), part.speakers),
    ):
        if published not in (None, found):
            raise UserError(
                f"{folder} has {found:,} {what} where {part.archive} has {published:,}; unpack the archive again "
                f"(remove {folder}), or pass --accept_counts to go on with these."
            )


def _check_apart(data: Path, one: str, other: str, speakers: dict[str, dict[str, int]]) -> None:
    shared = sorted(speakers.get(one, {}).keys() & speakers.get(other, {}).keys())
    if shared:
        raise UserError(
            f"{len(shared):,} speakers of {data / one} are in {data / other} too, the first {shown(shared[0])}, so "
            "their error rates would say nothing about others; remove them from one of the two."
        )


def _check_list(each: TrialList, lists: Path, data: Path, accept_counts: bool) -> dict[str, int]:
    path = lists / each.file
    listed = trials.read(path)
    targets = int(listed.labels.sum())
    for what, found, published in (("trials", len(listed), each.trials), ("target trials", targets, each.targets)):
        if found != published and not accept_counts:
            raise UserError(
                f"{path} has {found:,} {what} where the published list has {published:,}; download it again, or pass "
                "--accept_counts to go on with it."
            )
    missing = [name for name in listed.names if not any((data / part / name).is_file() for part in EVALUATED)]
    if missing:
        folders = " or ".join(str(data / part) for part in EVALUATED)
        raise UserError(
            f"{len(missing):,} of the {len(listed.names):,} recordings of {path} are not in {folders}, the first "
            f"{shown(missing[0])}; unpack VoxCeleb1 again."
        )
    return {"trials": len(listed), "targets": targets, "recordings": len(listed.names)}
