"""The last epochs of several runs on the same trials: EER per dimension, and whether each differs from the first run.

    python experiments/compare_runs.py --runs runs/lossless runs/random --trials=trials.txt --audio_root=UNSEEN \\
        --output=compared

The best epoch of a run was chosen by its trials; the last one was not, so that a test on the same trials is fair.
Moving averages of the weights count where a run had them. Writes `results.json`, `results.md` and `runs.png`.
"""

import argparse
from pathlib import Path

from frozen_backbone import Judge

from redimnet_jax.evaluation import protocol
from redimnet_jax.training.saved_run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="workdirs; their folders are the names")
    parser.add_argument("--trials", required=True)
    parser.add_argument("--audio_root", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runs = {run.name: open_run(run) for run in args.runs}
    if len(runs) < len(args.runs):
        parser.error("--runs: two folders have the same name, which would be the name of both in the table")
    first = next(iter(runs.values()))
    judge = Judge(protocol.from_list(args.trials, args.audio_root), args.seed, first.heads.dims)
    for name, run in runs.items():
        judge(name, run.model)
    judge.write(args, "runs.png")


if __name__ == "__main__":
    main()
