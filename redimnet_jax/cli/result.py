"""The result of a command, and how it is printed: as JSON, or as lines of text and the seconds of each part."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from redimnet_jax import buckets, names
from redimnet_jax.cli.command import Parser, run

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command found: plain values with `seconds`, the same as lines of text, and the exit code."""

    content: Mapping[str, Any]
    lines: Sequence[str]
    code: int = 0


def run_command(
    parser: Parser, arguments: Sequence[str] | None, make: Callable[..., T], work: Callable[[T], Result]
) -> int:
    """Print the result of `work` on the settings that `make` gives; return the exit code."""
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    settings = parser.settings(make, given)
    codes: list[int] = []

    def command() -> None:
        result = work(settings)
        seconds = ", ".join(f"{name} {value:.3f} s" for name, value in result.content["seconds"].items())
        if as_json:
            print(buckets.readable(json.dumps(result.content, indent=2, allow_nan=False)))
        else:
            print("\n".join(names.one_line(buckets.readable(line)) for line in [*result.lines, seconds]))
        codes.append(result.code)

    return run(command, parser.flags()) or codes[0]
