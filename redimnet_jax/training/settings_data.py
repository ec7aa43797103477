"""The settings of a training run about its data: corpus, crops, augmentation, cache, and validation."""

from dataclasses import dataclass
from typing import Any

from redimnet_jax.data import augment
from redimnet_jax.setting_values import Setting
from redimnet_jax.settings import options_of, section, setting

# A TPU has the crops of a batch in its 128 lanes, and is slower by far with fewer.
CROPS_ON_DEVICE = 256

DECIBELS: dict[str, Any] = {"at_least": -100, "at_most": 100, "unit": "dB", "ordered": True}
TILT: dict[str, Any] = DECIBELS | {"unit": "dB per octave"}
_P = Setting("Sets the probability that the step changes a crop; 0 turns the step off.", at_least=0, at_most=1)


def _step(name: str, **about: Setting) -> type:
    """Return the section of an augmentation step, which is off by default, and whose folder has no name."""
    cls: Any = augment.STEPS[name]
    changed: dict[str, tuple[Any, Any]] = {"p": (float, 0.0)} | ({"folder": (str, "")} if "folder" in about else {})
    if "talkers" in about:
        changed["talkers"] = (tuple[int, int], cls.talkers)
    return options_of(cls, {"p": _P, **about}, **changed)


def _decibels(text: str) -> Setting:
    return Setting(text, **DECIBELS)


Reverberation = _step("reverberation", folder=Setting("Names the folder of the impulse responses."))
_NOISES = Setting("Names the folder of the noise files.")
_SPEECH = Setting("Names the folder of the speech; without one it is that of the training corpus.")
_TALKERS = Setting("Gives the range of the number of talkers in babble.", at_least=1, at_most=1000, ordered=True)
_SNR = _decibels("Gives the range of the signal-to-noise ratio.")
NoiseFolder = _step(
    "noise_folder",
    folder=_NOISES,
    noise=_decibels("Gives the range of the signal-to-noise ratio for noise."),
    music=_decibels("Gives the range of the signal-to-noise ratio for music."),
    speech=_decibels("Gives the range of the signal-to-noise ratio for babble."),
    talkers=_TALKERS,
)
Noise = _step("noise", folder=_NOISES, snr=_SNR)
Music = _step("music", folder=Setting("Names the folder of the music."), snr=_SNR)
Speech = _step("speech", folder=_SPEECH, snr=_SNR)
Babble = _step("babble", folder=_SPEECH, snr=_SNR, talkers=_TALKERS)
GaussianNoise = _step("gaussian_noise", snr=_SNR)
Channel = _step(
    "channel",
    equaliser=_decibels("Gives the range of the gains of the frequency response."),
    tilt=Setting("Gives the range of the spectral tilt.", **TILT),
    low=Setting("Gives the range of the lower edge of the pass band.", above=0, unit="Hz", ordered=True),
    high=Setting("Gives the range of the upper edge of the pass band.", above=0, unit="Hz", ordered=True),
)
LowPass = _step(
    "low_pass",
    cutoff=Setting("Gives the range of the cut-off, as a fraction of the band.", above=0, at_most=1, ordered=True),
    width=Setting("Sets the width of the transition, as a fraction of the band.", above=0, at_most=1),
)
Codec = _step("codec", codecs=Setting("Lists the codecs, of which each crop gets one."))
Gain = _step("gain", decibels=_decibels("Gives the range of the change in level."))


@dataclass(frozen=True)
class Speed:
    """Speed perturbation; a factor is drawn evenly for every crop."""

    factors: tuple[float, ...] = setting(
        (), at_least=0.5, at_most=2, help="Lists the speeds, such as 1.0, 0.9 and 1.1; an empty list turns it off."
    )
    new_speakers: bool = setting(True, help="Makes a speaker at another speed another class.")


@dataclass(frozen=True)
class Draw:
    """Which steps augment a crop."""

    p: float = setting(
        1.0, above=0, at_most=1, help="Sets the probability that a crop is augmented at all, apart from its speed."
    )
    one_of: tuple[str, ...] = setting(
        (), help='Lists kinds, of which a crop gets one: the name of a step, or several joined with "+".'
    )
    weights: tuple[float, ...] | None = setting(
        None, at_least=0, help="Gives the weight of each kind; None draws the kinds evenly."
    )


@dataclass(frozen=True)
class Augment:
    """Random changes to training crops, applied in this order after the speed."""

    draw: Draw = section(Draw)
    reverberation: Any = section(Reverberation)
    noise_folder: Any = section(NoiseFolder)
    noise: Any = section(Noise)
    music: Any = section(Music)
    speech: Any = section(Speech)
    babble: Any = section(Babble)
    gaussian_noise: Any = section(GaussianNoise)
    channel: Any = section(Channel)
    low_pass: Any = section(LowPass)
    codec: Any = section(Codec)
    gain: Any = section(Gain)
    speed: Speed = section(Speed)


@dataclass(frozen=True)
class Data:
    """The training corpus and the crops that are drawn from it."""

    train: str = setting(
        "", help="Names the corpus: a folder tree, a list file (`path speaker`), or tfds:NAME[/CONFIG][:SPLIT]."
    )
    data_dir: str | None = setting(None, help="Names the folder of the TFDS datasets.")
    crop_seconds: float | tuple[float, ...] = setting(
        3.0,
        at_least=0.01,
        at_most=3600,
        unit="s",
        help="Sets the length of a training crop, or lists lengths, of which each batch has one.",
    )
    crops_per_utterance: int = setting(1, at_least=1, help="Sets how many crops of an utterance an epoch has.")
    crops_per_read: int = setting(
        1,
        at_least=1,
        help="Sets how many crops of an utterance one decoding serves; they stand in one batch, in consecutive rows.",
    )
    crops_per_speaker: int = setting(
        1, at_least=1, help="Sets how many crops of a speaker a batch has; losses over pairs need 2 or more."
    )
    one_utterance: bool = setting(
        False, help="Allows the crops of a speaker in a batch to be of one utterance if there is no second."
    )
    min_seconds: float = setting(
        0.5, at_least=0, unit="s", help="Leaves out and counts utterances shorter than this."
    )
    max_bad: float = setting(
        0.01, at_least=0, at_most=1, help="Stops the run when a larger fraction of the files cannot be used."
    )
    speech_only: bool = setting(False, help="Cuts all recordings, those of the validation too, to their speech.")
    min_speech: float = setting(
        0.5, above=0, unit="s", help="Leaves out and counts utterances with less speech, with `data.speech_only`."
    )
    workers: int = setting(
        0, at_least=0, at_most=1024, help="Sets the number of decoding processes; 0 decodes in threads."
    )
    augment: Augment = section(Augment)

    @property
    def crop_lengths(self) -> tuple[float, ...]:
        """The lengths of training crops in seconds, of which each batch has one."""
        return self.crop_seconds if isinstance(self.crop_seconds, tuple) else (self.crop_seconds,)


@dataclass(frozen=True)
class Cache:
    """A cache of the pooled features of training crops, for a backbone that is frozen at first."""

    crops: int = setting(
        0, at_least=0, help="Sets how many crops of an utterance are cached; 0 makes new crops in every epoch."
    )
    folder: str | None = setting(
        None, help="Names a folder that runs may share; None is a folder within the workdir."
    )
    batch_size: int | None = setting(
        None,
        at_least=1,
        help="Sets how many crops all devices together compute features of at once; None is 256 a device.",
    )
    memory_share: float = setting(
        0.6,
        at_least=0,
        at_most=1,
        help="Sets the fraction of device memory for features; the rest is read from files.",
    )

    def crops_at_once(self, devices: int) -> int:
        """Return how many crops `devices` devices together compute features of at once."""
        return CROPS_ON_DEVICE * devices if self.batch_size is None else self.batch_size


@dataclass(frozen=True)
class Validation:
    """Verification trials of speakers who are not trained on."""

    trials: str | None = setting(None, help="Names a trial list in VoxCeleb's format.")
    audio_root: str | None = setting(
        None,
        help="Names the folder that the paths of `validation.trials` are in, or several, separated by commas.",
    )
    utt2spk: str | None = setting(
        None, help="Names a file of lines `utterance speaker` that says who speaks in `validation.trials`."
    )
    speaker_pattern: str | None = setting(
        None, help="Gives a regular expression whose one group is the speaker in a path of `validation.trials`."
    )
    tree: str | None = setting(
        None,
        help="Names the corpus of unseen speakers: trials are generated from it, or `validation.trials` are in it.",
    )
    holdout: float = setting(
        0.02,
        above=0,
        below=1,
        help="Keeps out this fraction of the training speakers if there are neither trials nor a tree.",
    )
    generated_trials: int = setting(10_000, at_least=2, help="Sets how many trials are generated without a list.")
    metadata: str | None = setting(None, help="Names the table of the speakers' sex, such as vox1_meta.csv.")
    same_sex: bool = setting(False, help="Generates non-target trials only between speakers of one sex.")
    every_epochs: int = setting(1, at_least=1, unit="epochs", help="Sets the distance between validations.")
    crop_seconds: float | None = setting(
        None,
        at_least=0.01,
        at_most=3600,
        unit="s",
        help="Sets the length of the crops; None embeds whole utterances.",
    )
    crops: int = setting(1, at_least=1, help="Sets how many crops of an utterance are scored.")
    max_seconds: float = setting(60.0, above=0, unit="s", help="Cuts whole utterances that are longer.")
    batch_seconds: float = setting(240.0, above=0, unit="s", help="Sets how much audio a device embeds at once.")
    players: bool = setting(
        True, help="Puts the first seconds of the recordings of the hardest trials into report.html."
    )
    dim: int | None = setting(
        None, at_least=1, help="Chooses the dimension whose EER picks the best model; None is the largest."
    )
    bootstrap: int = setting(
        200, at_least=1, help="Sets the number of bootstrap resamples for the intervals during training."
    )
    patience: int | None = setting(
        None, at_least=1, help="Ends the last stage after this many validations without a better EER."
    )
    min_improvement: float = setting(
        0.0, at_least=0, at_most=1, help="Sets by how much a better EER must be lower, as a fraction."
    )
    significant: bool = setting(
        False, help="Counts an EER as better only if the 95% interval of the difference excludes 0."
    )
    allow_shared_speakers: bool = setting(False, help="Allows trials of training speakers.")


@dataclass(frozen=True)
class Classification:
    """Loss and accuracy on held-out recordings of the training speakers, beside the EER."""

    share: float = setting(
        0.0, at_least=0, below=1, help="Keeps out this fraction of every speaker's recordings; 0 turns it off."
    )
    gap_seconds: float = setting(
        1.0, at_least=0, unit="s", help="Leaves a gap between both sides of a speaker with one recording."
    )
    source: str | None = setting(
        None, help="Names a corpus of such recordings (tree, list file or tfds:NAME) instead of a share."
    )
    max_recordings: int = setting(2000, at_least=1, help="Limits the recordings to a random sample of this size.")
