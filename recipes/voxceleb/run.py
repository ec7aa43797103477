"""From the archives of VoxCeleb to the table of error rates, by one command that can be repeated at any time.

python recipes/voxceleb/run.py --archives=/data/archives --workdir=runs/voxceleb --variant=redimnet2-b2
python recipes/voxceleb/run.py --workdir=runs/voxceleb-dry --dry
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from recipes.voxceleb import dataset, dry  # noqa: E402
from recipes.voxceleb.archives import Archives  # noqa: E402
from recipes.voxceleb.records import Records, key  # noqa: E402
from recipes.voxceleb.stages import LARGE_MARGIN, PRETRAIN, STAGES, Ended, Recipe, Sizes, config_of  # noqa: E402
from redimnet_jax import locks, optional  # noqa: E402
from redimnet_jax.cli import command  # noqa: E402
from redimnet_jax.errors import UserError  # noqa: E402

HELP = """From the archives of VoxCeleb to the table of error rates; docs/guides/voxceleb.md explains every stage.

  python recipes/voxceleb/run.py --archives=/data/archives --workdir=runs/voxceleb --variant=redimnet2-b2

What is done is skipped, what was interrupted goes on, and what depends on something that changed is done again.

stages:
"""


def parser() -> command.Parser:
    """Return the parser of the command."""
    width = max(len(stage.name) for stage in STAGES)
    stages = "\n".join(f"  {stage.name:<{width}}  {stage.does}" for stage in STAGES)
    made = command.Parser("run.py", description=HELP + stages, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--archives", type=Path, metavar="DIR", help="folder of the downloaded archives and trial lists"
    )
    made.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="folder of everything that is made")
    made.add_argument(
        "--variant",
        default="redimnet2-b2",
        metavar="NAME",
        help="FAMILY-PRESET of a file in configs/ that has presets PRESET and PRESET_lm (default: %(default)s)",
    )
    made.add_argument(
        "--stage",
        action="append",
        choices=[stage.name for stage in STAGES],
        help="do only this stage, whose earlier ones are done; may be repeated",
    )
    made.add_argument(
        "--dry", action="store_true", help="make tiny archives of artificial voices, and do everything with them"
    )
    made.add_argument(
        "--pretrain",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the training, such as batch_size=512; may be repeated",
    )
    made.add_argument(
        "--large_margin",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the fine-tuning; may be repeated",
    )
    made.add_argument("--array_record", action="store_true", help="train from a TFDS data set in ArrayRecord files")
    made.add_argument("--accept_counts", action="store_true", help="go on with other counts than the published ones")
    return made


@command.closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    given = parser().parse_args(arguments)
    codes = [0]

    def work() -> None:
        try:
            _run(given)
        except Ended as end:
            codes[0] = end.code

    return command.run(work) or codes[0]


def _run(given: argparse.Namespace) -> None:
    optional.require("train")
    workdir = given.workdir.expanduser().absolute()
    with locks.locked(workdir):
        run_stages(_recipe(given, workdir), given.stage)


def _recipe(given: argparse.Namespace, workdir: Path) -> Recipe:
    changed = {PRETRAIN: given.pretrain, LARGE_MARGIN: given.large_margin}
    options = {"accept_counts": given.accept_counts, "array_record": given.array_record}
    if given.dry:
        folder = dry.make_archives(workdir / "archives")
        archives = Archives(dry.DATASET, folder, workdir)
        return Recipe(workdir, dry.DATASET, archives, dry.CONFIG, changed, dry.SIZES, **options)
    folder = None if given.archives is None else given.archives.expanduser().absolute()
    if folder is not None and not folder.is_dir():
        raise UserError(f"--archives is {folder}, which is no folder; give that of the downloaded archives.")
    archives = Archives(dataset.VOXCELEB, folder, workdir)
    return Recipe(workdir, dataset.VOXCELEB, archives, config_of(given.variant), changed, Sizes(), **options)


def run_stages(recipe: Recipe, chosen: Sequence[str] | None = None) -> None:
    """Do the stages that are not done, or of these the `chosen` ones, and keep a record of each.

    Raise UserError when a stage before a chosen one is not done.
    """
    records = Records(recipe.workdir)
    left = set(chosen or [stage.name for stage in STAGES])
    previous = None
    for number, stage in enumerate(STAGES, 1):
        title = f"[{number}/{len(STAGES)}] {stage.name}"
        inputs = stage.inputs(recipe)
        previous = key(stage, inputs, previous)
        facts = records.find(stage, previous)
        if facts is not None:
            print(f"{title}: done before", flush=True)
        elif stage.name not in left:
            raise UserError(f"The stage {stage.name} is not done; do it first, or leave --stage out to do all.")
        else:
            print(f"{title}: {stage.does}", flush=True)
            start = time.monotonic()
            facts = stage.work(recipe, previous)
            seconds = time.monotonic() - start
            records.write(stage, previous, inputs, facts, seconds)
            print(f"{title}: done in {seconds:,.0f} s", flush=True)
        recipe.facts[stage.name] = facts
        left.discard(stage.name)
        if not left:
            return


if __name__ == "__main__":
    sys.exit(main())
