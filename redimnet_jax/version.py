"""The version of the package, which files that it writes state."""

VERSION = "0.2.0"
