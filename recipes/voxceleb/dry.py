"""Archives of VoxCeleb's names and layout with artificial voices, for a run of a minute or two."""

import hashlib
import io
import itertools
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from recipes.voxceleb import dataset
from recipes.voxceleb.archives import CHECKSUMS
from recipes.voxceleb.dataset import Dataset, Part, TrialList
from recipes.voxceleb.stages import Sizes
from redimnet_jax import files
from redimnet_jax.data.audio import SAMPLE_RATE
from redimnet_jax.data.synthetic import rooms, voices

CONFIG = f"{Path(__file__).with_name('tiny.py')}:tiny"
SECONDS = 1.0
SESSIONS, UTTERANCES = 2, 2
# Part -> (number of its first speaker as in the names, speakers).
SPEAKERS = {"vox1_test": (10270, 5), "vox1_dev": (10001, 3), "vox2_dev": (12, 10)}
# All lists, and the trials of the calibration, have as many trials of as many recordings: what is compiled for one
# serves the others.
TRIALS = 40
SIZES = Sizes(top_k=4, cohort_utterances=2, calibration_trials=TRIALS, calibration_share=0.5, bootstrap=20)


def _tiny(part: Part) -> Part:
    """Return a part with the counts of its artificial archive."""
    if part.name not in SPEAKERS:
        return part
    count = SPEAKERS[part.name][1]
    return Part(
        part.name, part.archive, part.pieces, part.pattern, part.required, count * SESSIONS * UTTERANCES, count
    )


DATASET = Dataset(
    tuple(_tiny(part) for part in dataset.VOXCELEB.parts),
    tuple(TrialList(each.name, each.file, TRIALS, TRIALS // 2) for each in dataset.LISTS),
)


def make_archives(folder: Path) -> Path:
    """Write the archives, trial lists and checksums to `folder`, unless it exists; return the folder."""
    if folder.exists():
        return folder
    with files.new_folder(folder) as made:
        prefixes = {"vox1_test": "wav/", "vox1_dev": "wav/", "vox2_dev": "dev/aac/"}
        names = {}
        for part in DATASET.parts:
            if part.name in SPEAKERS:
                voices_of_part = _voices(part.name)
                names[part.name] = sorted(voices_of_part)
                _write_zip(made, part, {prefixes[part.name] + name: make for name, make in voices_of_part.items()})
            elif part.name == "rirs":
                _write_zip(made, part, {f"RIRS_NOISES/simulated_rirs/small/{i}.wav": _room(i) for i in range(3)})
            elif part.name == "musan":
                _write_tar(made / part.archive)
        test, dev = names["vox1_test"], names["vox1_dev"]
        of_lists = {"O": test, "E": test[:12] + dev[:8], "H": test[8:] + dev[4:]}
        for each in DATASET.lists:
            files.write(made / each.file, _trials(of_lists[each.name]))
        sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(made.iterdir())]
        files.write(made / CHECKSUMS, "".join(sums))
    return folder


def _voices(part: str) -> dict[str, Callable[[], bytes]]:
    """Return the functions that make the files of a part, by name below the folder of the speakers."""
    first, count = SPEAKERS[part]
    suffix, encode = ("m4a", _aac) if part == "vox2_dev" else ("wav", _wav)
    made = {}
    for speaker, session, utterance in itertools.product(range(count), range(SESSIONS), range(UTTERANCES)):
        name = f"id{first + speaker:05}/session{session:04}/{utterance + 1:05}.{suffix}"
        number = first + speaker

        def make(number: int = number, session: int = session, utterance: int = utterance) -> bytes:
            return encode(voices.synthesize(number, session, utterance, SECONDS))

        made[name] = make
    return made


def _room(number: int) -> Callable[[], bytes]:
    return lambda: _wav(rooms.impulse_response(np.random.default_rng(number)))


def _write_zip(folder: Path, part: Part, members: Mapping[str, Callable[[], bytes]]) -> None:
    """Write an archive, in pieces if the real one comes in pieces."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, make in members.items():
            archive.writestr(name, make())
    content = buffer.getvalue()
    size = -(-len(content) // max(1, len(part.pieces)))
    for number, name in enumerate(part.pieces or (part.archive,)):
        (folder / name).write_bytes(content[number * size : (number + 1) * size])


def _write_tar(path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for kind in ("noise", "music", "speech"):
            content = _wav(0.1 * rng.standard_normal(SAMPLE_RATE).astype(np.float32))
            info = tarfile.TarInfo(f"musan/{kind}/made/{kind}-made-0000.wav")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _trials(names: list[str]) -> str:
    """Return a list of different pairs of recordings of different sessions, half of them of one speaker."""

    def speaker(name: str) -> str:
        return name.partition("/")[0]

    pairs = [(a, b) for a, b in itertools.combinations(names, 2) if a.rpartition("/")[0] != b.rpartition("/")[0]]
    np.random.default_rng(0).shuffle(pairs)
    targets = [pair for pair in pairs if speaker(pair[0]) == speaker(pair[1])]
    others = [pair for pair in pairs if speaker(pair[0]) != speaker(pair[1])]
    half = TRIALS // 2
    rows = [f"1 {a} {b}" for a, b in targets[:half]] + [f"0 {a} {b}" for a, b in others[:half]]
    return "\n".join(rows) + "\n"


def _wav(waveform: np.ndarray) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _aac(waveform: np.ndarray) -> bytes:
    """Return a waveform as AAC in MP4, as VoxCeleb2 is distributed."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = 0
        for part in (frame, None):
            for packet in stream.encode(part):
                container.mux(packet)
    return buffer.getvalue()
