"""Render the report: sections into one HTML file that loads nothing and runs no script but its own."""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from redimnet_jax import files, optional
from redimnet_jax.evaluation.html_report.sections import Report, sections
from redimnet_jax.names import one_line


def write(path: str | Path, content: Report) -> Path:
    """Write `content` as HTML, whole or not at all; return the path; raise UserError when it cannot be written."""
    return files.write(path, render(content))


def render(content: Report) -> str:
    """Return `content` as HTML. All names in it are escaped, and a policy lets browsers run its own script alone."""
    optional.require("report")
    from jinja2 import Environment
    from markupsafe import Markup

    def on_one_line(value: Any) -> Any:
        # Names may hold what UTF-8 cannot encode.
        return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    script = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=on_one_line)
    template = environment.from_string(_part("report.html"))
    made, data = sections(content)
    return template.render(
        title=content.title,
        sections=made,
        data=data,
        style=Markup(_part("report.css")),
        script=Markup(script),
        script_hash=digest,
    )


def _part(name: str) -> str:
    return resources.files("redimnet_jax.evaluation.html_report").joinpath(name).read_text(encoding="utf-8")
