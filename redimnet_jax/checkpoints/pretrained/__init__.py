"""The small backbones that come with the package; see README.md beside this file for their making and licences."""

from pathlib import Path

# Native checkpoints. SMALL is the better one; LIBRISPEECH never heard speechocean762.
SMALL = Path(__file__).parent / "small"
LIBRISPEECH = Path(__file__).parent / "librispeech"
