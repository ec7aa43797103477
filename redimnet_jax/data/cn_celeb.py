"""CN-Celeb as it is distributed: `data/SPEAKER/GENRE-NUMBER-NUMBER.flac`, and a list of the training speakers.

The other speakers are those of its trials. CN-Celeb1 has the list `dev/dev.lst`, CN-Celeb2 `spk.lst`.
"""

from pathlib import Path

from redimnet_jax import addresses, names
from redimnet_jax.errors import UserError

DATA = "data"
LISTS = ("dev/dev.lst", "spk.lst")


def training_speakers(folder: Path) -> frozenset[str] | None:
    """Return the training speakers of CN-Celeb in `folder`, or None when `folder` is something else.

    Raise UserError when the list of the training speakers is empty.
    """
    lists = [folder / name for name in LISTS if addresses.is_file(folder / name)]
    if addresses.of(folder) or not lists or not addresses.is_folder(folder / DATA):
        return None
    lines = names.read_lines(lists[0], "The list of speakers")
    speakers = frozenset(filter(None, (names.decode(line).strip() for line in lines)))
    if not speakers:
        raise UserError(f"{lists[0]} names no speaker; unpack CN-Celeb again.")
    return speakers
