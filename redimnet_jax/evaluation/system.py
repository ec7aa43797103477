"""The steps of `eval.py`; `cli.py` has its flags and puts the steps together."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redimnet_jax import scoring, utterance_speakers
from redimnet_jax.checkpoints import native
from redimnet_jax.data import subset
from redimnet_jax.data.corpus import Corpus, open_corpus
from redimnet_jax.embedding.cache import PooledCache
from redimnet_jax.embedding.extract import Recordings, embed_pooled, pool_recordings
from redimnet_jax.embedding.segments import CropPolicy
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import cohort, comparison, enrolment, protocol, report, transfer, verdicts
from redimnet_jax.evaluation import results as evaluation_results
from redimnet_jax.evaluation.cohort import Normalisation
from redimnet_jax.evaluation.comparison import Other
from redimnet_jax.evaluation.enrolment import Enrolled
from redimnet_jax.evaluation.protocol import Validation
from redimnet_jax.evaluation.transfer import Transfer
from redimnet_jax.models.speaker_model import SpeakerModel

COSINE = "cosine"


@dataclasses.dataclass(frozen=True)
class Data:
    """The trials that are evaluated, those that are calibrated on, the cohort, and another system's scores."""

    judged: Validation
    calibration: Validation | None
    cohort: subset.Subset | None
    other: Other | None


def open_data(args: argparse.Namespace) -> Data:
    """All that is read, checked before any long work."""

    def opened(source: str) -> Corpus:
        return open_corpus(source, cache_dir=args.output / "index", data_dir=args.data_dir)

    models = None if args.enrolment is None else enrolment.read(args.enrolment)
    rule = utterance_speakers.rule(args.utt2spk, args.speaker_pattern)
    corpus = None if args.corpus is None else opened(args.corpus)

    def listed(path: Path, audio_root: list[Path] | None, corpus: Corpus | None) -> Validation:
        if models is None:
            return protocol.from_list(path, audio_root, corpus, rule)
        return enrolment.from_list(path, models, audio_root, corpus, rule)

    if args.trials is None:
        judged = protocol.from_corpus(corpus, count=args.count, seed=args.seed, description=args.corpus)
    else:
        judged = listed(args.trials, args.audio_root, corpus)
    protocol.check(judged, (), allow_shared=True)

    calibration = chosen = None
    if args.calibrate is not None:
        own_root = args.calibrate_root is not None
        calibration = listed(args.calibrate, args.calibrate_root or args.audio_root, None if own_root else corpus)
        protocol.check(calibration, (), allow_shared=True)
        if not args.allow_same_trials:
            _check_calibration(calibration, judged)
    if args.score_norm is not None:
        chosen = cohort.choose(opened(args.cohort), args.cohort_utterances, args.seed, args.top_k)
        for each in filter(None, (judged, calibration)):
            cohort.check(chosen, each)
    other = None if args.compare is None else comparison.read(args.compare, judged.trials)
    return Data(judged, calibration, chosen, other)


def _check_calibration(calibration: Validation, judged: Validation) -> None:
    shared = transfer.pairs(calibration.trials) & transfer.pairs(judged.trials)
    if shared:
        raise UserError(
            f"{len(shared):,} of the {calibration.description} are evaluated too, so the calibration would be judged "
            "by what it was fit on; give other trials, or say --allow_same_trials."
        )


@dataclasses.dataclass(frozen=True)
class System:
    """What gives scores: a model's `dims`, how recordings are pooled, and a score normalisation.

    `description` is what a calibration of the scores depends on.
    """

    model: SpeakerModel
    dims: tuple[int, ...]
    pool: Callable[[Recordings], np.ndarray]
    normalisation: Normalisation | None
    description: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the final scores are."""
        return COSINE if self.normalisation is None else self.normalisation.method

    def scores(self, judged: Validation) -> dict[str, np.ndarray]:
        """Scores (dims, trials) by kind: the cosine, then the normalised ones."""
        embeddings = embed_pooled(self.model, self.pool(judged.recordings))
        found = {COSINE: evaluation_results.cosines(embeddings, judged, self.dims)}
        if self.normalisation is not None:
            found[self.kind] = self.normalisation(found[COSINE], embeddings, judged)
        return found


def open_system(args: argparse.Namespace, model: SpeakerModel, data: Data) -> System:
    """The system of the flags; embeds the cohort."""
    dims = scoring.checked_dims(args.dims or model.mrl_dims or (model.embed_dim,), model.embed_dim)
    if data.other is not None:
        comparison.common_dims(data.other, dims)
    windows = CropPolicy(args.crop_seconds, args.crops, args.max_seconds)
    pool = functools.partial(
        pool_recordings,
        model,
        crop_policy=windows,
        batch_seconds=args.batch_seconds,
        progress="embedding",
        cache=None if args.cache is None else PooledCache(args.cache, model),
    )
    description = {
        "weights": native.checksum(native.flat(model.network)),
        "configuration": native.config_checksum(model.arch, model.model_config),
        "dtype": args.dtype,
        "windows": dataclasses.asdict(windows),
        "enrolment": isinstance(data.judged, Enrolled),
        "score": args.score_norm or COSINE,
    }
    normalisation = None
    if data.cohort is not None:
        embeddings = embed_pooled(model, pool(data.cohort))
        normalisation = Normalisation.of(args.score_norm, embeddings, data.cohort.labels, dims, args.top_k)
        description |= {"cohort": data.cohort.digest, "top_k": args.top_k}
    return System(model, dims, pool, normalisation, description)


def fixed_before(args: argparse.Namespace, system: System, data: Data) -> Transfer | None:
    """Calibrations and thresholds: of --calibrate, which are then kept, or kept beside the checkpoint; or None."""
    name = f"calibration-{system.kind}.json"
    beside = checkpoint_folder(args.checkpoint)
    if data.calibration is not None:
        scores = system.scores(data.calibration)[system.kind]
        found = transfer.fit(scores, data.calibration, system.dims, system.description)
        for folder in filter(None, (args.output, beside)):
            print(f"calibration: {transfer.save(found, folder / name)}")
        return found
    if beside is None or not (beside / name).exists():
        return None
    found = transfer.load(beside / name)
    refusal = found.refusal(system.description, system.dims, data.judged.trials)
    print(f"calibration: {beside / name}" + (f" is not used, {refusal}" if refusal else ""))
    return None if refusal else found


def checkpoint_folder(path: Path) -> Path | None:
    """The folder of the native checkpoint that `path` opens, or None of a file."""
    folders = (path, path / native.BEST)
    return next((folder for folder in folders if (folder / native.DESCRIPTION).exists()), None)


def results(
    args: argparse.Namespace,
    system: System,
    data: Data,
    scores: dict[str, np.ndarray],
    fixed: Transfer | None,
) -> tuple[dict[str, Any], dict[str, report.Results], list[report.Table]]:
    """(what `results.json` holds, the results of every kind of score by system, all of it as tables)."""
    judged = data.judged
    by_kind = {
        kind: evaluation_results.results_of(each, judged, system.dims, bootstrap=args.bootstrap, seed=args.seed)
        for kind, each in scores.items()
    }
    name, final = args.checkpoint.resolve().name, scores[system.kind]
    systems = {name if len(by_kind) == 1 else f"{name}, {kind}": each for kind, each in by_kind.items()}
    whole = {"score": system.kind, **by_kind[system.kind], "verdicts": verdicts.verdicts(by_kind[COSINE])}
    tables = [report.table(systems), verdicts.table(whole["verdicts"])]
    if system.kind != COSINE:
        whole[COSINE] = by_kind[COSINE]
    if fixed is not None:
        _add_transfer(whole, fixed, system.dims, final, judged)
        tables.append(transfer.table(whole))
    if data.other is not None:
        sides, labels = evaluation_results.speaker_sides(judged), judged.trials.labels
        whole["comparison"] = comparison.compare(
            data.other, final, labels, system.dims, sides, resamples=args.bootstrap, seed=args.seed
        )
        tables.append(comparison.table(whole["comparison"]))
    return whole, systems, tables


def _add_transfer(
    whole: dict[str, Any], fixed: Transfer, dims: Sequence[int], scores: np.ndarray, judged: Validation
) -> None:
    whole["calibration"] = {"trials": fixed.trials["from"], "shared_speakers": fixed.shared_speakers(judged)}
    for dim, row in zip(dims, scores, strict=True):
        whole["dims"][str(dim)] |= fixed.figures(dim, row, judged.trials.labels, evaluation_results.P_TARGETS)
