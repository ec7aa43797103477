"""How `train.py` starts and ends early: one sentence, one run in a workdir, signals, several processes."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import run_commands
import training_runs
from refusals import refusal
from run_commands import begin, begin_two, end, wait_until

from redimnet_jax import locks
from redimnet_jax.cli import convert, evaluate
from redimnet_jax.cli import train as train_command
from redimnet_jax.training import run as training_run

ROOT = run_commands.ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


def flags(data: dict[str, str], workdir: Path, **settings) -> list[str]:
    wanted = training_runs.SETTINGS | data | {"cache.crops": 0} | settings
    return [f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in wanted.items())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model.checkpoint": "weights/b6"}, "--model=b6 --train_type=ft_lm --output=weights/b6"),
        ({"validation.tree": "nowhere"}, "nowhere"),
    ],
)
def test_an_early_error_is_all_that_is_said(wrong, told, data, tmp_path):
    code, out, err = end(begin(*flags(data | wrong, tmp_path / "run")))
    said = [line for line in err.splitlines() if not re.match(r"\S+: \d+ utterances|\w+: +\d+%|$", line)]
    assert (code, len(said)) == (1, 1) and said[0].startswith("error: ") and told in said[0], err


def test_without_a_workdir_there_is_a_new_one(data, tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(training_run, "train", lambda config, workdir: told.append(workdir))
    assert train_command.main([f"--config={run_commands.CONFIG}:demo"]) == 0
    assert re.fullmatch(r"runs/projection_only-demo-\d{8}-\d{6}", str(told[0]))
    assert str(told[0]) in capsys.readouterr().out and not told[0].exists()


def test_a_second_run_in_a_workdir_is_refused(data, tmp_path):
    with locks.locked(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        assert "is being written by another process" in refusal(
            training_run.train, training_runs.config(data), tmp_path
        )
        assert sorted(tmp_path.rglob("*")) == before == [tmp_path / "lock"]


def test_the_lock_of_a_killed_process_does_not_stay(tmp_path):
    code = "import sys, time; from redimnet_jax import locks\nwith locks.locked(sys.argv[1]): time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    try:
        path = tmp_path / "lock"
        wait_until(lambda: path.exists() and path.read_text(), "locking")
        with pytest.raises(locks.UserError, match=str(holder.pid)), locks.locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert path.exists()
    with locks.locked(tmp_path):
        assert str(holder.pid) not in path.read_text()
    assert not path.exists()


def test_without_locks_the_user_is_told(tmp_path, monkeypatch, caplog):
    import fcntl

    def flock(*_):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.locked(tmp_path / "new"):
        assert "has no locks" in caplog.text
    assert not (tmp_path / "new").exists()


MOMENTS = {
    "imports": lambda process, workdir: run_commands.catches_sigterm(process),
    "start": lambda process, workdir: (workdir / "lock").exists(),
    "index": lambda process, workdir: (workdir / "index").exists(),
    "validation": lambda process, workdir: (workdir / "config.json").exists(),
    "report": lambda process, workdir: (workdir / "scores.tsv").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_at_any_moment_ends_well(moment, data, tmp_path):
    process = begin(*flags(data, tmp_path / "run", epochs=1))
    wait_until(lambda: MOMENTS[moment](process, tmp_path / "run"), moment)
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert code == 0 and "Traceback" not in err, err
    assert re.search(r"the same command (goes on|again)", out) or "best model" in out, out


@pytest.mark.slow
def test_sigterm_while_the_main_thread_is_in_native_code():
    code = """
import hashlib
from redimnet_jax.cli import command
from redimnet_jax.training import preemption
with preemption.leaving_at_once(lambda number: command.leave(0, f"left by {number}")):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    try:
        assert process.communicate(timeout=30)[0] == "left by 15\n" and process.returncode == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_ctrl_c_twice_gives_no_traceback(data, tmp_path):
    # So many epochs that it cannot end before the signals.
    process = begin(*flags(data, tmp_path / "run", epochs=1000))
    wait_until((tmp_path / "run" / "config.json").exists, "the first validation")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert code in (0, 130) and "Traceback" not in err
    assert "the same command goes on" in out + err


@pytest.mark.slow
def test_workers_and_shared_memory_end_with_a_killed_run(data, tmp_path):
    def shared() -> set[Path]:
        return set(Path("/dev/shm").glob("psm_*"))

    before = shared()
    process = begin(*flags(data, tmp_path, **{"data.workers": 2}))
    try:
        # Two workers and the resource tracker; the workers have made batches.
        wait_until(lambda: len(run_commands.children(process.pid)) > 2 and shared() - before, "the first batch")
        started, segments = run_commands.children(process.pid), shared() - before
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not any(map(run_commands.exists, started)), "the end of the workers", 30)
    wait_until(lambda: not segments & shared(), "the removal of shared memory", 30)


def ends_alike(processes, *told: str) -> None:
    """Both processes end with exit code 1 and one sentence, that has `told`."""
    for code, _, err in [end(process) for process in processes]:
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(said)) == (1, 1) and "Traceback" not in err, err
        assert all(part in said[0] for part in told), said


@pytest.mark.slow
def test_two_processes_with_two_workdirs(data, tmp_path):
    ends_alike(begin_two(*(flags(data, tmp_path / name) for name in "ab")), "Process 1 of 2", "the workdir")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_two_processes_with_two_configs(data, tmp_path):
    each = (flags(data, tmp_path / "run", epochs=epochs) for epochs in (1, 2))
    ends_alike(begin_two(*each), "The config of process 1")


@pytest.mark.slow
@pytest.mark.parametrize("second", ["nothing", "other"])
def test_two_processes_that_do_not_see_the_same_data(second, data, tmp_path):
    places = tmp_path / "first", tmp_path / "second"
    for place, source in zip(places, (data["data.train"], data["validation.tree"]), strict=True):
        place.mkdir()
        if place is places[0] or second == "other":
            (place / "voices").symlink_to(source)
    own = flags(data | {"data.train": "voices", "validation.tree": None}, tmp_path / "run")
    own = [flag for flag in own if not flag.endswith("=None")]
    told = "voices" if second == "nothing" else "Process 1 finds other recordings in voices"
    ends_alike(begin_two(own, own, cwd=places), told)


def test_an_address_that_fsspec_does_not_know(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    address = "nothing://bucket/run"
    told = f"{address} begins with nothing://"
    assert refusal(training_run.train, training_runs.config(data), address).startswith(told)
    for key in ("data.train", "validation.trials", "model.checkpoint"):
        changed = training_runs.config(data | {key: address})
        assert told in refusal(training_run.train, changed, tmp_path / "run")
    for command in (evaluate.main, convert.main):
        arguments = ["--checkpoint=a.pt", "--trials=x"][: 1 + (command is evaluate.main)]
        assert command([*arguments, f"--output={address}"]) == 1
        assert f"error: {told}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("data.worker", "data.workers"),
        ("validaton.trials", "validation.trials"),
    ],
)
def test_the_nearest_setting_is_named(key, found, capsys):
    config = Path(__file__).parents[2] / "configs/projection_only.py"
    assert train_command.main([f"--config={config}", f"--config.{key}=1"]) == 2
    assert f"no setting '{key}'; the nearest" in (error := capsys.readouterr().err) and found in error
