"""The table of commands, and how the library's arguments and log reach the user."""

import importlib
import logging
import os
import signal

from redimnet_jax.cli import command, main
from redimnet_jax.errors import ArgumentError, UserError


def test_help_lists_commands_that_exist(capsys):
    assert main.main([]) == 0
    out = capsys.readouterr().out
    for name, (module, line) in main.COMMANDS.items():
        assert f"  {name}" in out and line in out
        assert callable(importlib.import_module(f"redimnet_jax.cli.{module}").main)


def test_arguments_are_reported_as_flags_on_one_line(capsys):
    def fail() -> None:
        raise ArgumentError("`top_k` is 1 in a\nb; raise it, or set `other`.")

    assert command.run(fail, {"top_k": "--top_k"}) == 1
    assert capsys.readouterr().err == "error: --top_k is 1 in a\\nb; raise it, or set other.\n"
    assert str(ArgumentError("`top_k` is 1.")) == "top_k is 1." and issubclass(ArgumentError, UserError)


def test_log_is_printed(capsys):
    logger = logging.getLogger("redimnet_jax.test")
    assert command.run(lambda: (logger.info("one"), logger.warning("two"))) == 0
    assert capsys.readouterr() == ("one\n", "warning: two\n")


def test_sigterm_unwinds_the_command(capsys):
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    assert command.run(work) == 143 and cleaned == [True]
    assert capsys.readouterr().err == "Stopped by SIGTERM.\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_closed_output_is_no_traceback(monkeypatch, capsys):
    def closed(*_: object) -> None:
        raise BrokenPipeError

    assert command.closes_quietly(closed)() == 141
    assert capsys.readouterr().err == ""
