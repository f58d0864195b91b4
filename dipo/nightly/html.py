"""A night as one HTML file that needs nothing beside it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from dipo.nightly import terminal
from dipo.nightly.result import Status
from dipo.nightly.summary import Summary

TEMPLATE = "summary.html.j2"
CLASSES = {Status.PASSED: "passed", Status.FAILED: "failed", Status.BROKEN: "broken", Status.NOT_RUN: "skipped"}


def html_page(summary: Summary) -> str:
    """Return the page; all that comes from models, options and logs is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": terminal.percent,
        "cosine": terminal.cosine,
        "duration": terminal.duration,
        "change": terminal.change,
    }
    started = f"{datetime.fromisoformat(summary.started).astimezone():%Y-%m-%d %H:%M %Z}"
    page = environment.get_template(TEMPLATE)
    return page.render(summary=summary, started=started, classes=CLASSES, statuses=list(Status))
