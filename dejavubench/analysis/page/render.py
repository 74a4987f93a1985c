"""The contents of a page → HTML, with style, script and pictures inside."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dejavubench import __version__
from dejavubench.analysis.number_texts import nbytes_text
from dejavubench.analysis.page.contents import Page

TEMPLATE = "page.html.jinja"


def render(page: Page) -> str:
    """Return a page as one HTML document, which asks the network for nothing."""
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,  # names in records are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(nbytes=nbytes_text, join_units=join_units)
    script = _asset("page.js")
    text = environment.get_template(TEMPLATE).render(
        page=page,
        version=__version__,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        policy=_policy(script),
    )
    return text.lstrip()


UNIT_GAP_PATTERN = re.compile(r"(?<=\d) (?=%|×|[mµ]?s\b|[kMG]?B\b|[kMG]B/s)|(?<=[≤≥]) ")
"""Blank between a number and its unit, or its sign of comparison."""


def join_units(text: str) -> str:
    """Return a text whose numbers stay on one line with their units."""
    return UNIT_GAP_PATTERN.sub("\u00a0", text)


def _asset(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text("utf-8")


def _policy(script: str) -> str:
    """Return a policy by which browsers refuse all requests, and all scripts but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
