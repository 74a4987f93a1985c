"""The contents of a page → HTML, with style, script and pictures inside."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dejavubench import __version__
from dejavubench.analysis.number_texts import format_nbytes
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
    environment.filters.update(nbytes=format_nbytes, keep_together=keep_together)
    script = _read_asset("page.js")
    text = environment.get_template(TEMPLATE).render(
        page=page,
        version=__version__,
        style=Markup(_read_asset("page.css")),
        script=Markup(script),
        policy=_make_policy(script),
    )
    return text.lstrip()


UNIT_GAP_PATTERN = re.compile(r"(?<=\d) (?=%|×|[mµ]?s\b|[kMG]?B\b|[kMG]B/s)|(?<=[≤≥]) ")
"""Blank between a number and its unit, or its sign of comparison."""


WHOLE_PATTERN = re.compile(r"(?<![\w-])(?:\d{4}-\d\d-\d\d|--[a-z][a-z-]*)(?![\w-])")
"""A date, or a flag. A browser would break both at their hyphens."""


def keep_together(text: str) -> Markup:
    """Return a text whose dates, flags, and numbers with their units stay on one line."""
    unbroken_text = UNIT_GAP_PATTERN.sub("\u00a0", text)
    # A plain string, as re joins its pieces by the method in which Markup escapes them again.
    escaped_text = str(escape(unbroken_text))
    # An element, not other hyphens: who copies a flag must be able to run it.
    return Markup(WHOLE_PATTERN.sub(r'<span class="whole">\g<0></span>', escaped_text))


def _read_asset(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text("utf-8")


def _make_policy(script: str) -> str:
    """Return a policy by which browsers refuse all requests, and all scripts but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
