"""Filling a page's template; the style sheet goes into the page, so that the file needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from seedthink.telemetry.terminal import duration

TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of this package as text; values are escaped unless the template says otherwise."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return environment.get_template(template).render(values, style=style, made=made)
