"""What VoxCeleb is: its archives with their published MD5, its counts, and its trial lists."""

import dataclasses
import re

# Of every archive, only recordings are unpacked, under the name that the group of these patterns has.
SPEAKERS = re.compile(r"(?:^|/)(id\d{5}/[^/]+/[^/]+\.(?:wav|m4a))$")
NOISES = re.compile(r"(?:^|/)((?:music|noise|speech)/.+\.wav)$")
# The archive also holds noises, which are no impulse responses.
ROOMS = re.compile(r"(?:^|/)(simulated_rirs/.+\.wav)$")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the data, which becomes the folder `name`.

    `archive` is a file, in one piece or cut into `pieces` whose names end in aa, ab and so on. `pattern` finds what
    is unpacked. `utterances` and `speakers` are the published counts; None is not checked.
    """

    name: str
    archive: str
    pieces: tuple[str, ...]
    pattern: re.Pattern[str]
    required: bool = True
    utterances: int | None = None
    speakers: int | None = None


@dataclasses.dataclass(frozen=True)
class TrialList:
    """A trial list: what it is called in tables, its file, and how many trials and target trials it has."""

    name: str
    file: str
    trials: int
    targets: int


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Everything that a run of the recipe works on."""

    parts: tuple[Part, ...]
    lists: tuple[TrialList, ...]


def _pieces(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}_parta{chr(ord('a') + number)}" for number in range(count))


VOX1_DEV = Part("vox1_dev", "vox1_dev_wav.zip", _pieces("vox1_dev_wav", 4), SPEAKERS, True, 148_642, 1_211)
VOX1_TEST = Part("vox1_test", "vox1_test_wav.zip", (), SPEAKERS, True, 4_874, 40)
VOX2_DEV = Part("vox2_dev", "vox2_dev_aac.zip", _pieces("vox2_dev_aac", 8), SPEAKERS, True, 1_092_009, 5_994)
# Speakers that are neither trained on nor evaluated, for the calibration.
VOX2_TEST = Part("vox2_test", "vox2_test_aac.zip", (), SPEAKERS, False, 36_237, 118)
MUSAN = Part("musan", "musan.tar.gz", (), NOISES, False)
RIRS = Part("rirs", "rirs_noises.zip", (), ROOMS, False)

# The cleaned lists.
LISTS = (
    TrialList("O", "veri_test2.txt", 37_611, 18_802),
    TrialList("E", "list_test_all2.txt", 579_818, 289_921),
    TrialList("H", "list_test_hard2.txt", 550_894, 275_488),
)
VOXCELEB = Dataset((VOX1_TEST, VOX1_DEV, VOX2_TEST, VOX2_DEV, MUSAN, RIRS), LISTS)

# As the distributors of the archives and several public recipes give them.
MD5 = {
    "vox1_dev_wav_partaa": "e395d020928bc15670b570a21695ed96",
    "vox1_dev_wav_partab": "bbfaaccefab65d82b21903e81a8a8020",
    "vox1_dev_wav_partac": "017d579a2a96a077f40042ec33e51512",
    "vox1_dev_wav_partad": "7bb1e9f70fddc7a678fa998ea8b3ba19",
    "vox1_dev_wav.zip": "ae63e55b951748cc486645f532ba230b",
    "vox1_test_wav.zip": "185fdc63c3c739954633d50379a3d102",
    "vox2_dev_aac_partaa": "da070494c573e5c0564b1d11c3b20577",
    "vox2_dev_aac_partab": "17fe6dab2b32b48abaf1676429cdd06f",
    "vox2_dev_aac_partac": "1de58e086c5edf63625af1cb6d831528",
    "vox2_dev_aac_partad": "5a043eb03e15c5a918ee6a52aad477f9",
    "vox2_dev_aac_partae": "cea401b624983e2d0b2a87fb5d59aa60",
    "vox2_dev_aac_partaf": "fc886d9ba90ab88e7880ee98effd6ae9",
    "vox2_dev_aac_partag": "d160ecc3f6ee3eed54d55349531cb42e",
    "vox2_dev_aac_partah": "6b84a81b9af72a9d9eecbb3b1f602e65",
    "vox2_dev_aac.zip": "bbc063c46078a602ca71605645c2a402",
    "vox2_test_aac.zip": "0d2b3ea430a821c33263b5ea37ede312",
    "musan.tar.gz": "0c472d4fc0c5141eca47ad1ffeb2a7df",
    "rirs_noises.zip": "e6f48e257286e05de56413b4779d8ffb",
    "veri_test2.txt": "b73110731c9223c1461fe49cb48dddfc",
    "list_test_all2.txt": "a53e059deb562ffcfc092bf5d90d9f3a",
    "list_test_hard2.txt": "857790e09d579a68eb2e339a090343c8",
}
