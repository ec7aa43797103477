"""The small backbone that comes with the package; see README.md beside this file for its making and its licence."""

from pathlib import Path

# A native checkpoint.
SMALL = Path(__file__).parent / "small"
