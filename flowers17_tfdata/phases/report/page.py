"""Renders the HTML templates."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import jinja2
import plotly.offline

import flowers17_tfdata
from flowers17_tfdata.errors import counted


def render(context: Mapping[str, Any], template: str = "report.html") -> str:
    """Returns an HTML page that makes no network request.

    Args:
      context: the template's variables, besides those that all pages share. All
        text in them is escaped, because class and file names come from users'
        folders.
      template: name of a file in `templates/`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flowers17_tfdata.phases.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, duration=duration, number=number, counted=counted
    )
    return environment.get_template(template).render(
        **context,
        written=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=flowers17_tfdata.__version__,
        plotly_js=plotly.offline.get_plotlyjs(),
    )


def percent(fraction: float | None, digits: int = 1) -> str:
    """Formats a fraction in percent; None as a dash."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def number(value: float | None) -> str:
    """Formats a number with three significant digits; None as a dash."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Formats e.g. `0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
