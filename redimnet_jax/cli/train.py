"""The command `train.py`: its flags, the folder of the run, signals, and several processes."""

import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jax

from redimnet_jax import buckets, hosts, names, optional
from redimnet_jax.cli import command
from redimnet_jax.errors import UserError
from redimnet_jax.training import preemption

if TYPE_CHECKING:  # An optional dependency.
    from ml_collections import ConfigDict

RUNS = Path("runs")  # where runs without --workdir get their folders

HELP = """Train a Matryoshka speaker embedding; an interrupted run in the same workdir goes on.

  python train.py --config=configs/projection_only.py --workdir=runs/b2 --config.data.train=/data/vox2
  python train.py --config=configs/projection_only.py:demo --workdir=runs/demo

  --config=FILE[:PRESET]  a file of configs/, whose docstring says what it does
  --config.KEY=VALUE      changes a setting, such as --config.batch_size=512 or --config.data.augment.gain.p=0.5;
                          docs/reference/settings.md lists all of them, and so does --settings
  --settings              print every setting with its default, range and meaning, and exit
  --check                 decode all recordings first and say which cannot be read; exit code 1 where too many
  --workdir=DIR           checkpoints, best model, logs, results and plots of the run
                          (default: a new folder in runs/, named by config and time)
  --distributed           join the other hosts of the TPU slice or cluster first
  --coordinator=HOST:PORT --processes=N --process_id=I
                          the same where no cluster tells
  --join_seconds=S        how long to wait for the other processes (default: 45)

Give validation.trials (VoxCeleb's format), with validation.audio_root, or validation.tree (unseen speakers to make
trials of); with neither, some training speakers are kept out of training and validated on. SIGTERM and Ctrl-C save
and exit 0.
"""


@command.closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code.

    The exit code is also 0 after a SIGTERM, when everything is saved.
    """
    arguments = ["train.py", *(sys.argv[1:] if arguments is None else arguments)]

    if not {"-h", "--help", "-help"}.isdisjoint(arguments):
        print(HELP)
        return 0
    try:
        optional.require("train")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "--settings" in arguments:
        from redimnet_jax.training import settings_reference

        print(settings_reference.text(), end="")
        return 0
    ending = _Ending()
    with preemption.leaving_at_once(ending.on_signal):
        try:
            values = _values(arguments)
        except UserError as error:
            print(f"error: {str(error).removesuffix('.')}; see train.py --help.", file=sys.stderr)
            return 2
        return _run(values, ending)


def read_config(arguments: Sequence[str]) -> "ConfigDict":
    """Return the config that the command trains with; raise UserError where it refuses the `arguments`."""
    return _values(["train.py", *arguments]).config


def _values(arguments: Sequence[str]) -> Any:
    """Return the parsed flags of a command line; raise UserError for what is wrong with them."""
    from absl import flags

    values = _flags(arguments)
    try:
        _parse(values, arguments)
    except (flags.Error, UserError, ValueError, TypeError, OSError, AttributeError, KeyError) as error:
        raise UserError(f"{_unknown_setting(arguments) or _reason(error)}.") from error
    return values


def _flags(arguments: Sequence[str]) -> Any:
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    # It finds the settings that are given in the command line, by default that of the process.
    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file of configs/, FILE or FILE:PRESET",
        flag_values=values,
        sys_argv=list(arguments),
    )
    flags.DEFINE_string("workdir", None, "folder of the run; an interrupted run goes on", flag_values=values)
    flags.DEFINE_bool("check", False, "decode all recordings, say which cannot be read, and end", flag_values=values)
    flags.DEFINE_bool("distributed", False, "join the other hosts of the slice or cluster", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if no cluster tells", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many there are, with --coordinator", flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one this is, with --coordinator", flag_values=values)
    flags.DEFINE_integer("join_seconds", 45, "how long to wait for the others", lower_bound=1, flag_values=values)
    return values


def _parse(values: Any, arguments: Sequence[str]) -> None:
    from absl import flags

    rest = values(list(arguments))[1:]
    if values.config is None:
        raise flags.Error("--config is missing; give --config=configs/projection_only.py or another file of configs/")
    if rest:
        raise flags.Error(f"{rest[0]!r} is not understood")
    cluster = [values.coordinator, values.processes, values.process_id]
    if None in cluster and any(flag is not None for flag in cluster):
        raise flags.Error("--coordinator, --processes and --process_id are given together or not at all")
    if values.workdir is not None and not values.workdir:
        raise flags.Error("--workdir is empty; give the folder of the run, or leave the flag out")
    values.config.to_dict()  # A file that does not load says so only when it is used.


def _reason(error: Exception) -> str:
    """Return the last line of an error, which alone says why a file does not load."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().removesuffix(".")


def _unknown_setting(arguments: Sequence[str]) -> str | None:
    """Return a sentence on the first `--config.KEY` that is no setting, with the nearest ones, or None."""
    from redimnet_jax.settings import leaves, nearest
    from redimnet_jax.training.settings import Settings

    known = {leaf.key for leaf in leaves(Settings)}
    for argument in arguments:
        flag = argument.lstrip("-").partition("=")[0]
        if not (argument.startswith("-") and flag.startswith("config.")):
            continue
        key = flag.removeprefix("config.")
        if key not in known and not key.startswith("model.config."):
            return f"The config has no setting {key!r}; {nearest(key, Settings)}"
    return None


class _Ending:
    """How this process ends: by a signal, or since another one did."""

    def __init__(self) -> None:
        self.again = "the same command goes on from there"
        self.farewell: hosts.Farewell | None = None

    def on_signal(self, number: int) -> NoReturn:
        """End this process, and the others, on SIGTERM or Ctrl-C outside of what a run watches."""
        import signal

        code, word = (0, "Stopped") if number == signal.SIGTERM else (130, "Interrupted")
        sentence = f"{word}; what was saved is kept, and {self.again}."
        if self.farewell is not None:
            self.farewell.say(code, sentence)
        command.leave(code, sentence)

    def on_other(self, code: int, sentence: str) -> NoReturn:
        """End this process after another one has."""
        command.leave(code, f"error: {sentence}" if code == 1 else sentence)


def _run(values: Any, ending: _Ending) -> int:
    """Trains as told by the flags; returns the exit code, unless the other processes have to be told of an error."""
    names.show_any()
    if not (values.distributed or values.coordinator):
        return command.run(lambda: _train(values, ending))
    try:
        hosts.join(values.coordinator, values.processes, values.process_id, values.join_seconds)
    except Exception as error:  # JAX and its plugins raise many kinds.
        print(f"error: The processes cannot be joined ({_reason(error)}); see train.py --help.", file=sys.stderr)
        return 1
    preemption.reinstall_handlers()
    with command.logged(), hosts.Farewell(ending.on_other) as farewell:
        ending.farewell = farewell
        try:
            _train(values, ending)
            # Until process 0 has written the results, so that the others hear of it when that fails.
            hosts.meet()
            return 0
        except UserError as error:
            sentence = buckets.readable(str(error))
            farewell.say(1, sentence)
            command.leave(1, f"error: {sentence}")
        except Exception as error:
            # When another process has ended, a collective call fails here before the other's sentence is seen.
            patience = hosts.LOST_SECONDS + 10.0 if hosts.may_be_lost_peer(error) else 2.0
            if (message := farewell.heard(seconds=patience)) is not None:
                farewell.say(*message)
                ending.on_other(*message)
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {_reason(error)}"
            farewell.say(1, sentence)
            command.leave(1, sentence)  # On the way out JAX would wait for the others, which have left.
        finally:
            ending.farewell = None


def _train(values: Any, ending: _Ending) -> None:
    from redimnet_jax.training import recording_check
    from redimnet_jax.training import run as training_run

    workdir = values.workdir
    if workdir is None:
        workdir = _default_workdir(values)
        ending.again = f"the same command with --workdir={workdir} goes on from there"
        if jax.process_index() == 0:
            print(f"workdir     {workdir}", flush=True)
    if values.check:
        recording_check.check(values.config, workdir)
        return
    try:
        training_run.train(values.config, workdir)
    except preemption.Preempted as stop:
        print(stop if values.workdir else f"{stop}\nGive --workdir={workdir} to go on.")


def _default_workdir(values: Any) -> Path:
    """Return a folder in `RUNS` named by the config, its preset and the time; the same on every process."""
    from ml_collections import config_flags

    path, _, preset = config_flags.get_config_filename(values["config"]).partition(":")
    name = "-".join(filter(None, (Path(path).stem, preset, time.strftime("%Y%m%d-%H%M%S"))))
    return RUNS / hosts.gather(name)[0]
