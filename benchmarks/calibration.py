"""Calibrations on random halves of the speakers of a trial list, judged on the other halves.

python benchmarks/calibration.py --checkpoint=redimnet_jax/checkpoints/pretrained/small --trials=trials.txt \
    --audio_root=eval --dims=64,128,192 --halves=20

For every dimension and set of quality measures, the table gives the means over the halves: Cllr and minCllr on the
judging half, their ratio, in how many halves Cllr is at most 1.05 minCllr, the false acceptance rate at the threshold
that has 1% on the fitting half, and in how many halves its 95% interval on the judging half contains 1%.
"""

import argparse
from pathlib import Path

import numpy as np

from redimnet_jax import metrics
from redimnet_jax.cli.command import logged
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import error_curve, report, system, system_calibration
from redimnet_jax.evaluation.calibration import fit
from redimnet_jax.evaluation.protocol import TrialSet
from redimnet_jax.evaluation.quality_measures import DURATION, NORM, SPEECH
from redimnet_jax.evaluation.settings import EvaluationSettings
from redimnet_jax.evaluation.speaker_halves import half_masks, select_trials

SETS = ((), (DURATION,), (SPEECH,), (NORM,), (DURATION, SPEECH, NORM))
FAR = 0.01
RATIO = 1.05
HEADER = ("dim", "measures", "halves", "Cllr", "minCllr", "ratio", f"<= {RATIO}", "FAR %", "FRR %", "FAR holds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--trials", type=Path, required=True)
    parser.add_argument("--audio_root", type=Path, required=True)
    parser.add_argument("--dims", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--halves", type=int, default=20)
    parser.add_argument("--bootstrap", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("/tmp/calibration"), help="for indices of corpora")
    arguments = parser.parse_args()
    settings = EvaluationSettings(
        checkpoint=arguments.checkpoint,
        output=arguments.output,
        trials=arguments.trials,
        audio_root=(arguments.audio_root,),
        dims=arguments.dims,
    )
    with logged():
        model = system.open_model(settings.checkpoint)
        data = system.open_data(settings)
        scoring_system = system.open_system(settings, model, data)
        scored = scoring_system.score(data.trial_set, (SPEECH,))
    rows = []
    for dim, scores in zip(scoring_system.dims, scored.scores[scoring_system.kind], strict=True):
        pairs = system_calibration.pairs_of(scored.sides[dim], data.trial_set, dict.fromkeys(SETS[-1]))
        for measures in SETS:
            used = {name: pairs[name] for name in measures}
            judged = [
                judge(scores, used, data.trial_set, seed, arguments.bootstrap) for seed in range(arguments.halves)
            ]
            rows.append(row(dim, measures, [each for each in judged if each is not None]))
    print(report.Table("", HEADER, rows).text())


def judge(scores, pairs, trial_set: TrialSet, seed: int, resamples: int) -> tuple[float, ...] | None:
    """Return (Cllr, minCllr, FAR, FRR, whether the interval of the FAR holds `FAR`), or None without a fit."""
    labels = trial_set.trials.labels
    fitting, judging = half_masks(trial_set, seed)
    first = {name: values[:, fitting] for name, values in pairs.items()}
    second = {name: values[:, judging] for name, values in pairs.items()}
    half = select_trials(trial_set, judging, "half")
    try:
        calibration = fit(
            scores[fitting], labels[fitting], measures=first, speakers=len(set(trial_set.speakers)) // 2
        )
    except UserError:
        return None
    llrs = calibration(scores[judging], second)
    threshold = metrics.threshold_at_far(calibration(scores[fitting], first), labels[fitting], FAR)
    low, high = error_curve.measure(llrs, half, "half", resamples=resamples).at(threshold).far_ci95
    rates = metrics.error_rates(llrs, labels[judging], threshold)
    return metrics.cllr(llrs, labels[judging]), metrics.min_cllr(llrs, labels[judging]), *rates, low <= FAR <= high


def row(dim: int, measures: tuple[str, ...], judged: list[tuple[float, ...]]) -> list[str]:
    """Return the cells of a set of measures."""
    cllr, least, far, frr, holds = np.array(judged).T
    return [
        str(dim),
        ", ".join(measures) or "none",
        str(len(judged)),
        f"{cllr.mean():.4f}",
        f"{least.mean():.4f}",
        f"{cllr.mean() / least.mean():.3f}",
        str(int((cllr <= RATIO * least).sum())),
        f"{100 * far.mean():.2f}",
        f"{100 * frr.mean():.2f}",
        str(int(holds.sum())),
    ]


if __name__ == "__main__":
    main()
