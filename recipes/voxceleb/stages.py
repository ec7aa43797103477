"""The stages of the recipe, each a thin call of what the package has."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.voxceleb import archives, checks, table
from recipes.voxceleb.archives import Archives
from recipes.voxceleb.dataset import Dataset
from recipes.voxceleb.records import Stage
from redimnet_jax import files, trials
from redimnet_jax.cli import evaluate as evaluate_command
from redimnet_jax.cli import tfds as tfds_command
from redimnet_jax.cli import train as train_command
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.data.recordings import Subset
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import score_norm
from redimnet_jax.training import config as train_config
from redimnet_jax.training.averaging import AVERAGED

PRETRAIN, LARGE_MARGIN = "pretrain", "large_margin"
# Quality measures of the calibration; that of speech needs an extra.
MEASURES = "duration,norm,cohort"


class Ended(Exception):
    """A command of a stage has said why it ended with this exit code; 0 after a request to stop."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the evaluation.

    As-norm takes the `top_k` nearest speakers of a cohort, each the mean of `cohort_utterances`. The calibration is
    fitted on `calibration_trials`; where they are of training speakers, these are `calibration_share` of them, and
    the cohort is of the others.
    """

    top_k: int = 300
    cohort_utterances: int = 20
    calibration_trials: int = 30_000
    calibration_share: float = 0.1
    bootstrap: int = 1000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run of the recipe in `workdir`.

    `config` is FILE:PRESET of the first training; that of the fine-tuning has `_lm` behind it. `changed` has
    settings `KEY=VALUE` by stage. `facts` are those of the stages that are done, by name.
    """

    workdir: Path
    content: Dataset
    archives: Archives
    config: str
    changed: Mapping[str, Sequence[str]]
    sizes: Sizes = Sizes()
    accept_counts: bool = False
    array_record: bool = False
    facts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def part(self, name: str) -> Path | None:
        """Return the folder of a part of the data, or None of one that is not there."""
        folder = self.archives.data / name
        return folder if folder.is_dir() else None

    def list_path(self, name: str) -> Path:
        """Return the trial list called `name`."""
        return next(self.archives.lists / each.file for each in self.content.lists if each.name == name)

    @property
    def index(self) -> Path:
        """The folder of the indices of all corpora."""
        return self.workdir / "index"

    @property
    def model(self) -> Path:
        """The model to evaluate."""
        return self.workdir / self.facts[LARGE_MARGIN]["model"]

    def run_command(self, name: str, main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
        """Print a command and run it in this process; raise Ended when it fails."""
        print(f"$ {name} {shlex.join(arguments)}", flush=True)
        code = main(arguments)
        if code:
            raise Ended(code)


def unpack(recipe: Recipe, key: str) -> dict[str, Any]:
    return {"files": recipe.archives.unpack(recipe.archives.contents())}


def count(recipe: Recipe, key: str) -> dict[str, Any]:
    for config in (recipe.config, f"{recipe.config}_lm"):
        augmentation(recipe, train_command.read_config([f"--config={config}"]).data.augment)
    return checks.check(recipe.content, recipe.archives.data, recipe.archives.lists, recipe.accept_counts)


def count_inputs(recipe: Recipe) -> Any:
    parts = [[part.name, part.utterances, part.speakers] for part in recipe.content.parts]
    lists = [[each.name, each.trials, each.targets] for each in recipe.content.lists]
    return {"accept_counts": recipe.accept_counts, "parts": parts, "lists": lists}


def index(recipe: Recipe, key: str) -> dict[str, Any]:
    folder = recipe.part(checks.TRAINED_ON)
    data_dir = None
    source = str(folder)
    if recipe.array_record:
        name = f"vox2_dev_{key}"
        data_dir = recipe.workdir / "tfds"
        source = f"tfds:speaker_corpus/{name}:train"
        # A data set appears whole, and is there already if the process was killed behind it.
        if not (data_dir / "speaker_corpus" / name).exists():
            options = [
                f"--source={folder}",
                f"--data_dir={data_dir}",
                f"--name={name}",
                f"--cache_dir={recipe.index}",
            ]
            recipe.run_command("redimnet-jax tfds", tfds_command.main, options)
    corpus = open_corpus(source, cache_dir=recipe.index, data_dir=data_dir)
    facts = {"source": source, "data_dir": data_dir and str(data_dir), "digest": corpus.digest}
    return facts | {"summary": corpus.summary, "outputs": [recipe.index.name]}


def training_arguments(recipe: Recipe, stage: str) -> list[str]:
    """Return the arguments of train.py for a stage, but the workdir."""
    config = f"--config={recipe.config}" + ("_lm" if stage == LARGE_MARGIN else "")
    data = recipe.facts["index"]
    given = {"data.train": data["source"], "validation.trials": recipe.list_path("O")}
    given["validation.audio_root"] = recipe.part("vox1_test")
    if data["data_dir"]:
        given["data.data_dir"] = data["data_dir"]
    settings = train_command.read_config([config])
    if stage == LARGE_MARGIN:
        model = recipe.workdir / recipe.facts[PRETRAIN]["model"]
        given["model.checkpoint"] = model
        if settings.heads.init == "run":
            given["heads.run"] = model.parent
    given |= augmentation(recipe, settings.data.augment)
    arguments = [config, *(f"--config.{key}={value}" for key, value in given.items())]
    return arguments + [f"--config.{change}" for change in recipe.changed.get(stage, ())]


def augmentation(recipe: Recipe, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that give the `steps` of a config their folders, and turn off those without one."""
    musan = recipe.part("musan")
    roots = {"reverberation": recipe.part("rirs"), "noise_folder": musan}
    for name, folder in {"noise": "noise", "music": "music", "speech": "speech", "babble": "speech"}.items():
        roots[name] = musan / folder if musan is not None and (musan / folder).is_dir() else None
    given: dict[str, Any] = {}
    without = set()
    for name, step in steps.items():
        if "folder" in step and step["p"]:
            if roots.get(name) is None:
                without.add(name)
                # The options of a step that is off have their defaults.
                default = train_config.default().data.augment[name]
                changed = (option for option in step if step[option] != default[option])
                given |= {f"data.augment.{name}.{option}": default[option] for option in changed}
            else:
                given[f"data.augment.{name}.folder"] = roots[name]
    # A config may draw one of several kinds for a crop, each of one step or of several.
    draw = steps.get("draw", {})
    kinds = tuple(draw.get("one_of", ()))
    left = [number for number, kind in enumerate(kinds) if without.isdisjoint(kind.split("+"))]
    if len(left) < len(kinds):
        given["data.augment.draw.one_of"] = tuple(kinds[number] for number in left)
        if draw.get("weights") is not None:
            given["data.augment.draw.weights"] = tuple(draw["weights"][number] for number in left)
    if kinds and not left:
        raise UserError(
            f"The config draws one of {', '.join(kinds)} for every crop, and there are neither noises nor impulse "
            "responses; download musan.tar.gz or rirs_noises.zip."
        )
    return given


def training_inputs(stage: str) -> Callable[[Recipe], Any]:
    """Return the function that gives the settings of a training as far as they decide its result."""

    def inputs(recipe: Recipe) -> Any:
        config = train_command.read_config(training_arguments(recipe, stage))
        # The workdir may be moved.
        text = config.to_json_best_effort().replace(json.dumps(str(recipe.workdir))[1:-1], "WORKDIR")
        # A setting that is newer than the run has its default value.
        defaults = train_config.lasting(json.loads(train_config.default().to_json_best_effort()))
        given = train_config.lasting(json.loads(text))
        return {key: value for key, value in given.items() if key not in defaults or value != defaults[key]}

    return inputs


def train(stage: str) -> Callable[[Recipe, str], dict[str, Any]]:
    """Return the function that trains for a stage, or goes on with it."""

    def work(recipe: Recipe, key: str) -> dict[str, Any]:
        folder = recipe.workdir / f"{stage}-{key}"
        link_index(recipe, folder)
        arguments = [*training_arguments(recipe, stage), f"--workdir={folder}"]
        recipe.run_command("python train.py", train_command.main, arguments)
        if not (folder / "results.json").exists():
            raise Ended(0)
        model = folder / AVERAGED
        name = (model if model.exists() else folder / "best").relative_to(recipe.workdir)
        return {"model": str(name), "outputs": [str(name)]}

    return work


def link_index(recipe: Recipe, folder: Path) -> None:
    """Let a run or an evaluation in `folder` find the indices that are there, which take hours to build."""
    link = folder / "index"
    folder.mkdir(parents=True, exist_ok=True)
    recipe.index.mkdir(exist_ok=True)
    if not os.path.lexists(link):
        link.symlink_to(os.path.relpath(recipe.index, folder))


def draw_calibration(recipe: Recipe, key: str) -> dict[str, Any]:
    """Draw the trials of the calibration, and a cohort of other speakers; see `Sizes`."""
    sizes = recipe.sizes
    trained_on = open_corpus(str(recipe.part(checks.TRAINED_ON)), cache_dir=recipe.index)
    rng = np.random.default_rng(0)
    if recipe.part(checks.FOR_CALIBRATION):
        name = checks.FOR_CALIBRATION
        judges = open_corpus(str(recipe.part(name)), cache_dir=recipe.index)
        in_cohort = np.ones(len(trained_on), bool)
    else:
        # A speaker of the cohort would be compared with their own mean.
        name = checks.TRAINED_ON
        speakers = len(trained_on.speakers)
        chosen = rng.permutation(speakers)[: round(sizes.calibration_share * speakers)]
        in_cohort = ~np.isin(trained_on.labels, chosen)
        judges = Subset(trained_on, np.flatnonzero(~in_cohort))
    # Trials across sessions are as hard as those of the lists.
    drawn = trials.generate(judges, count=sizes.calibration_trials, cross_session=True)
    cohort = score_norm.choose_cohort(Subset(trained_on, np.flatnonzero(in_cohort)), sizes.cohort_utterances, seed=0)
    lists = recipe.archives.lists
    paths = {"list": lists / f"calibration-{key}.txt", "cohort": lists / f"cohort-{key}.txt"}
    trials.write(drawn, paths["list"])
    root = os.path.relpath(recipe.archives.data / checks.TRAINED_ON, lists)
    rows = (f"{root}/{cohort.name(i)}\t{cohort.speakers[label]}\n" for i, label in enumerate(cohort.labels))
    files.write(paths["cohort"], "".join(rows))
    facts = {name: path.name for name, path in paths.items()}
    return facts | {"from": name, "outputs": [f"{lists.name}/{path.name}" for path in paths.values()]}


def evaluate(recipe: Recipe, key: str) -> dict[str, Any]:
    calibration = recipe.facts["calibrate"]
    lists = recipe.archives.lists
    by_list = {}
    for each in recipe.content.lists:
        output = recipe.workdir / f"evaluate-{key}" / each.name
        # The report is written last.
        if not (output / "report.html").exists():
            link_index(recipe, output)
            options = {
                "checkpoint": recipe.model,
                "trials": recipe.list_path(each.name),
                "score_norm": "as-norm",
                "cohort": lists / calibration["cohort"],
                "cohort_utterances": recipe.sizes.cohort_utterances,
                "top_k": recipe.sizes.top_k,
                "calibrate": lists / calibration["list"],
                "calibrate_root": recipe.part(calibration["from"]),
                "calibrate_quality": MEASURES,
                "bootstrap": recipe.sizes.bootstrap,
                "cache": recipe.workdir / "features",
                "players": "none",
                "output": output,
            }
            roots = [f"--audio_root={recipe.part(name)}" for name in checks.EVALUATED]
            arguments = [*(f"--{name}={value}" for name, value in options.items()), *roots, "--allow_repeated_trials"]
            recipe.run_command("python eval.py", evaluate_command.main, arguments)
        by_list[each.name] = str((output / "results.json").relative_to(recipe.workdir))
    return {"results": by_list, "outputs": list(by_list.values())}


def write_table(recipe: Recipe, key: str) -> dict[str, Any]:
    results = recipe.facts["evaluate"]["results"]
    by_list = {name: table.figures(archives.read_json(recipe.workdir / path)) for name, path in results.items()}
    folder = recipe.workdir / f"table-{key}"
    about = {
        "config": f"{Path(recipe.config).name}, then {Path(recipe.config).name}_lm",
        "changed settings": "; ".join(each for changes in recipe.changed.values() for each in changes) or "none",
        "model": recipe.facts[LARGE_MARGIN]["model"],
        "training data": recipe.facts["index"]["summary"],
        "cohort of as-norm": f"the {recipe.sizes.top_k} nearest training speakers, the mean of "
        f"{recipe.sizes.cohort_utterances} utterances each",
        "calibrated on": f"trials drawn from {recipe.facts['calibrate']['from']}"
        + (", speakers that were trained on" if recipe.facts["calibrate"]["from"] == checks.TRAINED_ON else ""),
    }
    made = table.write(folder, by_list, about)
    print(f"\n{made.text()}\ntable.md, table.json and table.png are in {folder}")
    return {"outputs": [f"{folder.name}/{name}" for name in ("table.md", "table.json", "table.png")]}


def _sizes(recipe: Recipe) -> Any:
    return dataclasses.asdict(recipe.sizes)


def nothing(recipe: Recipe) -> Any:
    """Return the inputs of a stage that depends on the stages before it alone."""
    return None


STAGES: tuple[Stage[Recipe], ...] = (
    Stage("unpack", "check and unpack the archives", lambda recipe: recipe.archives.contents(), unpack),
    Stage("check", "count recordings, speakers and trials, and look for shared speakers", count_inputs, count),
    Stage("index", "decode all training recordings", lambda recipe: {"array_record": recipe.array_record}, index),
    Stage(PRETRAIN, "train the network, and average its last epochs", training_inputs(PRETRAIN), train(PRETRAIN)),
    Stage(
        LARGE_MARGIN,
        "fine-tune with a large margin, and average the last epochs",
        training_inputs(LARGE_MARGIN),
        train(LARGE_MARGIN),
    ),
    Stage("calibrate", "draw the trials that the calibration is fitted on, and a cohort", _sizes, draw_calibration),
    Stage("evaluate", "score the lists by cosine and as-norm, and calibrate the scores", _sizes, evaluate),
    Stage("table", "write the table", nothing, write_table),
)


def config_of(variant: str) -> str:
    """Return FILE:PRESET of a variant such as "redimnet2-b2"; raise UserError when there is no such config."""
    family, _, size = variant.rpartition("-")
    root = Path(__file__).parents[2]
    path = root / "configs" / f"{family}.py"
    if not size or not family.isidentifier() or not path.is_file():
        raise UserError(f"There is no config for the variant {variant!r}; give one such as redimnet2-b2.")
    return f"{path}:{size}"
