"""What a training run reads: its corpus, its validation trials, and how crops are augmented."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from redimnet_jax import hosts, utterance_speakers
from redimnet_jax.data import augment, resumed, splits, subset
from redimnet_jax.data.corpus import Corpus, open_corpus
from redimnet_jax.data.speakers import read_sexes
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import protocol
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.training import classification
from redimnet_jax.training.classification import SeenSpeakers

SYNTHETIC = re.compile(r"synthetic:(\d+)x(\d+)x(\d+)(?:@(\d+))?")
SYNTHETIC_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads; `seen`, where it is wanted, are recordings of training speakers that do not train."""

    corpus: Corpus | subset.Subset
    validation: TrialSet
    speed: augment.Speed | None
    steps: tuple[augment.Step, ...]
    seen: SeenSpeakers | None = None
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the corpora opened, by their setting

    @property
    def classes(self) -> list[str]:
        """The speaker map: the name of every class, in the order of the prototypes."""
        factors = self.speed.factors if self.speed and self.speed.new_speakers else (1.0,)
        return [f"{name}@{factor:g}" if factor != 1 else name for factor in factors for name in self.corpus.speakers]


def check_sources(config: Any) -> None:
    """Raises UserError when `config` does not say what to train on; looks at no file."""
    if not config.data.train:
        raise UserError(
            "config.data.train is empty; give --config.data.train=FOLDER, a tree of speakers, or a list file or "
            "tfds:NAME, or choose the :demo preset of configs/projection_only.py, which makes its own data."
        )
    if config.validation.same_sex and not config.validation.metadata:
        raise UserError("validation.same_sex needs validation.metadata, the speakers' sex, such as vox1_meta.csv.")


def open_data(config: Any, workdir: Path, digests: Mapping[str, str] | None = None) -> Data:
    """The training corpus and the validation trials of `config`, checked, the quickest to check first.

    Indices of the audio and synthetic voices are kept in `workdir`. A run that goes on gives the `digests` of its
    start, by which recordings that were removed or replaced since are known, see `resumed_corpus`.
    """
    wanted, chosen = config.validation, config.data.augment
    check_sources(config)
    rule = utterance_speakers.rule(wanted.utt2spk, wanted.speaker_pattern)
    steps = augment.from_config({name: chosen[name].to_dict() for name in augment.STEPS if chosen[name].p})
    speed = augment.speed_from_config(chosen.speed.to_dict() if chosen.speed.factors else None)

    opened_digests: dict[str, str] = {}

    def opened(setting: str, source: str, min_speakers: int = 1) -> Corpus:
        now = hosts.first_then_others(
            lambda: open_corpus(
                _synthetic_tree(source, workdir / "synthetic") if source.startswith("synthetic:") else source,
                cache_dir=workdir / "index",
                min_seconds=config.data.min_seconds,
                max_bad=config.data.max_bad,
                min_speakers=min_speakers,
                data_dir=config.data.data_dir,
                progress=jax.process_index() == 0,
            )
        )
        show = jax.process_index() == 0
        corpus = resumed.resumed(now, (digests or {}).get(setting), workdir / "index", show=show)
        hosts.check_same(
            corpus.digest,
            f"Process {{which}} finds other recordings in {source} than process 0; give all processes the same data.",
        )
        opened_digests[setting] = corpus.digest
        return corpus

    making = {
        "count": wanted.generated_trials,
        "seed": config.seed,
        "sexes": read_sexes(wanted.metadata) if wanted.same_sex else None,
    }
    trials = None
    if wanted.trials:
        unseen = opened("validation.tree", wanted.tree) if wanted.tree else None
        trials = protocol.from_list(wanted.trials, wanted.audio_root, unseen, rule)
    elif wanted.tree:
        trials = protocol.from_corpus(opened("validation.tree", wanted.tree), description=wanted.tree, **making)
    corpus = opened("data.train", config.data.train, min_speakers=2)
    if trials is None:
        corpus, held = subset.hold_out(corpus, wanted.holdout, config.seed)
        description = f"{len(held.speakers)} training speakers kept out of training"
        trials = protocol.from_corpus(held, description=description, **making)
    resumed.require_all(trials.recordings, "the validation")
    protocol.check(trials, corpus.speakers, wanted.allow_shared_speakers)
    known, held, seen = config.classification, None, None
    if known.source:
        held, description = (
            opened("classification.source", known.source),
            f"recordings of training speakers in {known.source}",
        )
        classification.check_apart(held, corpus)
    elif known.share:
        parts = splits.split(
            corpus,
            known.share,
            gap_seconds=known.gap_seconds,
            min_seconds=config.data.min_seconds,
            seed=config.seed,
        )
        corpus, held, description = parts.train, parts.held, parts.description
    if held is not None:
        resumed.require_all(held, "the classification of training speakers")
        seen = classification.seen_speakers(
            held, corpus, most=known.max_recordings, seed=config.seed, description=description, speed=speed
        )
    return Data(corpus, trials, speed, steps, seen, opened_digests)


def _synthetic_tree(source: str, folder: Path) -> Path:
    """The tree of `synthetic:SPEAKERSxSESSIONSxUTTERANCES[@FIRST]` below `folder`, made when it is not there.

    FIRST is the number of the first speaker, so that two sources can have different ones.
    """
    from redimnet_jax.data.synthetic import voices

    match = SYNTHETIC.fullmatch(source)
    if match is None:
        raise UserError(f"{source!r} is not understood; write synthetic:SPEAKERSxSESSIONSxUTTERANCES[@FIRST].")
    speakers, sessions, utterances, first = (int(number or 0) for number in match.groups())
    tree = folder / source.removeprefix("synthetic:")
    if not tree.exists():
        voices.write_corpus(
            tree,
            speakers=speakers,
            sessions=sessions,
            utterances=utterances,
            seconds=SYNTHETIC_SECONDS,
            first_speaker=first,
        )
    return tree
