"""The reference of all settings, as a Markdown page and as text for a terminal.

python -m redimnet_jax.training.settings_reference --output=PAGE.md
"""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from redimnet_jax import files
from redimnet_jax.setting_values import type_name
from redimnet_jax.settings import Leaf, leaves, sections
from redimnet_jax.training.settings import Settings

# Where the page is, from the root of the repository.
PAGE = "docs/reference/settings.md"

INTRODUCTION = f"""\
# Settings

This page lists every setting of a training run. `--config.KEY=VALUE` changes one on the command line, and a file in
`configs/` changes several. Write a list as `"(64, 128)"`; its range applies to every element. The run refuses a value
outside its range, and a value other than the default where the setting would have no effect.

`python -m redimnet_jax.training.settings_reference --output={PAGE}` generates this page.
"""


def markdown(cls: type = Settings) -> str:
    """Return the page: a table for every section."""
    described, parts = dict(sections(cls)), [INTRODUCTION]
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves(cls):
        groups.setdefault(leaf.key.rpartition(".")[0], []).append(leaf)
    for name, group in groups.items():
        rows = [
            f"| `{leaf.key}` | {type_name(leaf.kind)} | `{_default(leaf.default)}` | {_range(leaf)} "
            f"| {leaf.about.unit} | {leaf.about.help} |"
            for leaf in group
        ]
        title = f"## `{name}`" if name else "## The run"
        table = ["| key | type | default | range | unit | what it does |", "|---|---|---|---|---|---|", *rows]
        parts.append("\n".join([title, "", described[name], "", *table, ""]))
    return "\n".join(parts)


def text(cls: type = Settings, width: int = 100) -> str:
    """Return the same for a terminal of `width` columns."""
    lines = []
    for leaf in leaves(cls):
        about = ", ".join(filter(None, (type_name(leaf.kind), _range(leaf), leaf.about.unit)))
        lines.append(f"{leaf.key} = {_default(leaf.default)}  ({about})")
        lines += textwrap.wrap(leaf.about.help, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write the reference of all settings.")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the Markdown page")
    files.write(parser.parse_args().output, markdown())


def _default(value: Any) -> str:
    return repr(value)


def _range(leaf: Leaf) -> str:
    return ", ".join(leaf.about.choices) or leaf.about.range()


if __name__ == "__main__":
    main()
