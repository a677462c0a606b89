"""Fills the page's template."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe
import plotly.offline


def render(context: Mapping[str, Any], template: str = "report.html") -> str:
    """Returns the page: one HTML file that requests nothing from anywhere.

    Args:
      context: what the template names. Every text in it is escaped: class and
        file names come from users' folders.
      template: of those in `templates/`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flowers17_tfdata.phases.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "number": number,
    }

    def read(name: str) -> markupsafe.Markup:
        # A whole file, not to be escaped.
        source, *_ = environment.loader.get_source(environment, name)
        return markupsafe.Markup(source)

    return environment.get_template(template).render(
        **context,
        css=read("report.css"),
        dark_css=read("dark.css"),
        js=read("report.js"),
        plotly_js=markupsafe.Markup(plotly.offline.get_plotlyjs()),
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a share in percent; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.{digits}f} %"


def number(value: float | None) -> str:
    """Returns a number to three digits; a dash where there is none."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Returns e.g. `0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s"
    return f"{hours} h {minutes} min"
