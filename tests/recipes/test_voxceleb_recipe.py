"""The recipe: its checks, its records, and all of it on tiny archives."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from refusals import refusal

from recipes.voxceleb import checks, dry, run, stages
from recipes.voxceleb.archives import Archives
from recipes.voxceleb.records import Stage
from recipes.voxceleb.stages import Ended, Recipe
from redimnet_jax import trials
from redimnet_jax.cli import train as train_command
from redimnet_jax.data.corpus import open_corpus
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import html_report, plots
from redimnet_jax.training import config as train_config


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A workdir whose data are unpacked."""
    workdir = tmp_path_factory.mktemp("voxceleb")
    archives = Archives(dry.DATASET, dry.make_archives(workdir / "archives"), workdir)
    archives.unpack(archives.contents())
    return workdir


@pytest.fixture
def workdir(unpacked, tmp_path):
    """A copy of the data, which a test may change."""
    for name in ("data", "lists"):
        shutil.copytree(unpacked / name, tmp_path / name)
    return tmp_path


def checked(workdir: Path, accept_counts: bool = False) -> dict:
    return checks.check(dry.DATASET, workdir / "data", workdir / "lists", accept_counts)


def test_counts_are_checked(workdir):
    counts = checked(workdir)
    assert counts["vox2_dev"] == {"utterances": 40, "speakers": 10}
    assert counts["O"] == {"trials": 40, "targets": 20, "recordings": 20}
    shutil.rmtree(workdir / "data" / "vox2_dev" / "id00012")
    told = refusal(checked, workdir)
    assert "vox2_dev has 36 utterances where vox2_dev_aac.zip has 40" in told and "--accept_counts" in told
    assert checked(workdir, accept_counts=True)["vox2_dev"]["speakers"] == 9


def test_shared_speakers_are_refused_whatever_is_accepted(workdir):
    data = workdir / "data"
    shutil.move(data / "vox2_dev" / "id00012", data / "vox2_dev" / "id10270")
    assert "1 speakers of" in refusal(checked, workdir, True)


def test_lists_are_checked(workdir):
    path = workdir / "lists" / "list_test_hard2.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    assert "39 trials where the published list has 40" in refusal(checked, workdir)
    swapped = [lines[0].replace("1 ", "0 ", 1), *lines[1:]]
    path.write_text("\n".join(swapped))
    assert "19 target trials where the published list has 20" in refusal(checked, workdir)
    path.write_text("\n".join(lines))
    (workdir / "data" / "vox1_dev" / lines[0].split()[1]).unlink(missing_ok=True)
    (workdir / "data" / "vox1_test" / lines[0].split()[1]).unlink(missing_ok=True)
    assert "1 of the" in refusal(checked, workdir, True)


def recipe_in(workdir: Path, **changes) -> Recipe:
    archives = Archives(dry.DATASET, None, workdir)
    return Recipe(workdir, dry.DATASET, archives, dry.CONFIG, {}, dry.SIZES, **changes)


def test_stages_are_skipped_redone_and_gone_on_with(tmp_path, monkeypatch, capsys):
    done = []
    given = {"first": 1, "second": 1}

    def stage(name: str, fails: bool = False) -> Stage:
        def work(recipe: Recipe, key: str):
            done.append(name)
            if fails:
                raise UserError("It fails.")
            (tmp_path / f"{name}-{key}").touch()
            return {"outputs": [f"{name}-{key}"]}

        return Stage(name, "work", lambda recipe: given[name], work)

    def run_all(*last: Stage, chosen=None) -> list[str]:
        done.clear()
        monkeypatch.setattr(run, "STAGES", (stage("first"), *last))
        run.run_stages(recipe_in(tmp_path), chosen)
        return list(done)

    assert "It fails" in refusal(run_all, stage("second", fails=True))
    assert run_all(stage("second")) == ["second"]
    assert run_all(stage("second")) == []
    given["second"] = 2
    assert run_all(stage("second")) == ["second"]
    given["second"] = 1
    assert run_all(stage("second")) == []
    given["first"] = 2
    assert run_all(stage("second")) == ["first", "second"]
    for path in tmp_path.glob("second-*"):
        path.unlink()
    assert run_all(stage("second")) == ["second"]
    given["first"] = 3
    assert "The stage first is not done" in refusal(run_all, stage("second"), chosen=["second"])
    assert run_all(stage("second"), chosen=["first"]) == ["first"]
    record = next((tmp_path / "done").glob("first-*.json"))
    record.write_text("{")
    for path in (tmp_path / "done").glob("first-*.json"):
        path.write_text("{")
    assert "is damaged" in refusal(run_all, stage("second"))


def test_a_stopped_training_is_gone_on_with(unpacked, tmp_path, monkeypatch):
    recipe = recipe_in(unpacked)
    recipe = dataclasses.replace(recipe, workdir=tmp_path, facts={"index": {"source": "data", "data_dir": None}})
    commands = []
    ending = {"writes": False}

    def train(arguments):
        commands.append(list(arguments))
        if ending["writes"]:
            folder = Path(next(each for each in arguments if "workdir" in each).partition("=")[2])
            (folder / "best").mkdir()
            (folder / "results.json").write_text("{}")
        return 0

    monkeypatch.setattr(train_command, "main", train)
    work = stages.train(stages.PRETRAIN)
    with pytest.raises(Ended) as ended:
        work(recipe, "key")
    assert ended.value.code == 0
    ending["writes"] = True
    assert work(recipe, "key") == {"model": "pretrain-key/best", "outputs": ["pretrain-key/best"]}
    assert commands[0] == commands[1]


def test_noises_that_are_not_there_are_not_mixed_in(unpacked, tmp_path):
    recipe = recipe_in(unpacked)
    recipe.facts["index"] = {"source": "data", "data_dir": None}
    arguments = stages.training_arguments(recipe, stages.PRETRAIN)
    assert f"--config.data.augment.reverberation.folder={unpacked}/data/rirs" in arguments
    bare = dataclasses.replace(recipe, archives=Archives(dry.DATASET, None, tmp_path))
    config = train_command.read_config([f"--config={recipe.config}"])
    assert "musan.tar.gz or rirs_noises.zip" in refusal(stages.augmentation, bare, config.data.augment)
    assert "musan.tar.gz or rirs_noises.zip" in refusal(stages.count, bare, "key")
    without_kinds = {"noise_folder": {"p": 0.3, "folder": ""}}
    assert stages.augmentation(bare, without_kinds) == {"data.augment.noise_folder.p": 0.0}


def test_kinds_of_augmentation_lose_what_has_no_folder(unpacked, tmp_path):
    bare = dataclasses.replace(recipe_in(unpacked), archives=Archives(dry.DATASET, None, tmp_path))
    (tmp_path / "data" / "rirs").mkdir(parents=True)
    steps = {
        "draw": {
            "one_of": ("reverberation", "noise", "noise+reverberation", "codec"),
            "weights": (1.0, 2.0, 3.0, 4.0),
        },
        "reverberation": {"p": 1.0, "folder": ""},
        "noise": {"p": 1.0, "folder": "", "snr": (0.0, 1.0)},
        "codec": {"p": 1.0},
    }
    assert stages.augmentation(bare, steps) == {
        "data.augment.reverberation.folder": tmp_path / "data" / "rirs",
        "data.augment.noise.p": 0.0,
        "data.augment.noise.snr": train_config.default().data.augment.noise.snr,
        "data.augment.draw.one_of": ("reverberation", "codec"),
        "data.augment.draw.weights": (1.0, 4.0),
    }
    whole = stages.augmentation(recipe_in(unpacked), steps)
    assert whole["data.augment.noise.folder"] == unpacked / "data" / "musan" / "noise" and len(whole) == 2


def test_training_may_read_array_records(unpacked):
    pytest.importorskip("tensorflow_datasets")
    recipe = recipe_in(unpacked, array_record=True)
    first = stages.index(recipe, "key")
    assert first == stages.index(recipe, "key")
    assert first["source"] == "tfds:speaker_corpus/vox2_dev_key:train"
    assert first["digest"] == stages.index(recipe_in(unpacked), "key")["digest"]
    recipe.facts["index"] = first
    config = train_command.read_config(stages.training_arguments(recipe, stages.PRETRAIN))
    assert config.data.data_dir == str(unpacked / "tfds")


def test_the_cohort_has_none_of_the_speakers_of_the_calibration(unpacked, tmp_path):
    recipe = recipe_in(unpacked)
    facts = stages.draw_calibration(recipe, "key")
    listed = trials.read(unpacked / "lists" / facts["list"])
    rows = (unpacked / "lists" / facts["cohort"]).read_text().splitlines()
    cohort = {row.split("\t")[1] for row in rows}
    assert len(listed) == dry.TRIALS and facts["from"] == "vox2_dev"
    assert len(cohort) == 5 and not cohort & {name.partition("/")[0] for name in listed.names}
    corpus = open_corpus(unpacked / "lists" / facts["cohort"], cache_dir=None, progress=False)
    assert len(corpus) == 5 * dry.SIZES.cohort_utterances
    # Speakers of their own let all training speakers be in the cohort.
    (tmp_path / "data").mkdir()
    for name in ("vox2_dev", "vox1_test"):
        (tmp_path / "data" / name.replace("vox1", "vox2")).symlink_to(unpacked / "data" / name)
    recipe = dataclasses.replace(recipe, workdir=tmp_path, archives=Archives(dry.DATASET, None, tmp_path))
    facts = stages.draw_calibration(recipe, "key")
    assert facts["from"] == "vox2_test"
    assert len((tmp_path / "lists" / facts["cohort"]).read_text().splitlines()) == 20


def test_settings_decide_what_is_trained_anew(unpacked):
    recipe = recipe_in(unpacked)
    recipe.facts["index"] = {"source": "data", "data_dir": None}
    inputs = stages.training_inputs(stages.PRETRAIN)

    def with_settings(*settings: str):
        return inputs(dataclasses.replace(recipe, changed={stages.PRETRAIN: settings}))

    assert with_settings("epochs=3") != with_settings() and with_settings("epochs=3")["epochs"] == 3
    assert with_settings("data.workers=2") == with_settings()
    assert str(unpacked) not in json.dumps(with_settings())
    assert "no setting 'epoch'" in refusal(with_settings, "epoch=3")


@pytest.mark.parametrize("variant", ["redimnet2-b2", "redimnet2-b6", "redimnet-b2"])
@pytest.mark.parametrize("parts", [("musan", "rirs"), ("musan",), ("rirs",)])
def test_published_recipes_are_valid_with_the_folders_of_the_recipe(variant, parts, unpacked, tmp_path):
    archives = Archives(dry.DATASET, None, tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("vox1_test", *parts):
        (tmp_path / "data" / name).symlink_to(unpacked / "data" / name)
    recipe = dataclasses.replace(recipe_in(unpacked), archives=archives, config=stages.config_of(variant))
    recipe.facts["index"] = {"source": "data", "data_dir": None}
    recipe.facts[stages.PRETRAIN] = {"model": "pretrain-key/averaged"}
    for stage in (stages.PRETRAIN, stages.LARGE_MARGIN):
        config = train_command.read_config(stages.training_arguments(recipe, stage))
        train_config.check(config, devices=1)
    # The fine-tuning starts from the model and the prototypes of the training before.
    assert config.model.checkpoint == str(unpacked / "pretrain-key" / "averaged")
    assert config.heads.init == "run" and config.heads.run == str(unpacked / "pretrain-key")


def test_variants_name_configs():
    assert stages.config_of("redimnet2-b2").endswith("configs/redimnet2.py:b2")
    for wrong in ("b2", "unknown-b2", "../redimnet2-b2", "redimnet2-"):
        assert "There is no config" in refusal(stages.config_of, wrong)


def test_a_missing_folder_of_archives_is_one_sentence(tmp_path, capsys):
    assert run.main([f"--archives={tmp_path / 'nowhere'}", f"--workdir={tmp_path / 'work'}"]) == 1
    assert "which is no folder" in capsys.readouterr().err
    assert run.main([f"--archives={tmp_path}", f"--workdir={tmp_path / 'work'}"]) == 1
    assert "vox1_test_wav.zip is not in" in capsys.readouterr().err


@pytest.mark.slow
def test_all_of_it_on_tiny_archives(tmp_path, capsys, monkeypatch):
    """Without the figures and pages of its runs, which have tests of their own."""
    monkeypatch.setattr(html_report, "write", lambda *_: None)
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda made, path: save(made, path) if path.name == "table.png" else None)
    workdir = tmp_path / "work"
    assert run.main([f"--workdir={workdir}", "--dry"]) == 0
    out = capsys.readouterr().out
    assert "[8/8] table: done" in out
    folder = next(workdir.glob("table-*"))
    content = json.loads((folder / "table.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.json", "table.png"}
    for name in "OEH":
        results = json.loads(next(workdir.glob(f"evaluate-*/{name}/results.json")).read_text())
        shown = content["lists"][name]
        assert results["score"] == "as-norm" and results["calibration"]["shared_speakers"] == 0
        for dim in ("16", "32"):
            assert shown["cosine"][dim]["eer"] == results["cosine"]["dims"][dim]["eer"]
            assert shown["as-norm"][dim]["min_dcf"] == results["dims"][dim]["min_dcf"]
            assert shown["calibrated"][dim]["cllr"] == results["dims"][dim]["cllr"]
    assert (folder / "table.md").read_text().count("| VoxCeleb1-") == 18
    assert "speakers that were trained on" in content["about"]["calibrated on"]
    assert (workdir / content["about"]["model"]).name == "averaged"
    assert run.main([f"--workdir={workdir}", "--dry"]) == 0
    assert capsys.readouterr().out.count("done before") == 8
