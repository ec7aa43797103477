"""The options of an operating point, which all commands that decide share."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redimnet_jax.verification.operating_point import OperatingPoint


def add_operating_point(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    point = parser.add_argument_group("operating point")
    point.add_argument("--p_target", type=float, metavar="P", help="prior probability of one speaker (default: 0.5)")
    point.add_argument("--c_miss", type=float, metavar="C", help="cost of a false rejection (default: 1)")
    point.add_argument("--c_fa", type=float, metavar="C", help="cost of a false acceptance (default: 1)")
    point.add_argument("--far", type=float, metavar="RATE", help="accept this rate of false acceptances")
    point.add_argument(
        "--threshold", type=float, metavar="SCORE", help="accept from this score on; needs no calibration"
    )


def take_operating_point(given: dict[str, Any]) -> "OperatingPoint":
    """Take the options out of the `given` ones, and return the operating point; raise ArgumentError as it does."""
    import dataclasses

    from redimnet_jax.verification.operating_point import OperatingPoint

    return OperatingPoint(**{field.name: given.pop(field.name) for field in dataclasses.fields(OperatingPoint)})
