"""Colours of figures on light and dark pages.

Figures are drawn for white paper, with black texts, lines and hatches. On a page, black becomes its
ink, white its paper, and greys become mixtures of both. Colours stay on a light page. On a dark one
there are two rules, as the ink is light there:

- A mark, such as a line or a point, is lifted until it stands out from the paper.
- An area, such as a bar, is darkened until ink stands out from it: hatches, error bars and texts.
  The white in a light tint becomes paper, so that tints keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence

DARK_INK = (0xE3, 0xE7, 0xEC)
"""Red, green and blue of the ink of a dark page, as page.css has it."""

DARK_PAPER = (0x15, 0x18, 0x1C)
"""Red, green and blue of the paper of a dark page, as page.css has it."""

MARK_LUMINANCE = 0.22
"""Luminance from which a colour can be read on the paper of a dark page, by more than 4.5 to 1."""

AREA_LUMINANCE = 0.135
"""Luminance up to which ink can be read on an area of a dark page, by more than 4.5 to 1. An area
of this luminance still stands out from the paper, by more than 3 to 1."""


def mark_colour(colour: str) -> str:
    """Return the page's colour for a line, point or text of ``#rrggbb``."""
    light_rgb = _parse(colour)
    if _is_grey(light_rgb):
        return _convert_grey(light_rgb[0])
    return _format_for_schemes(colour, _lift(light_rgb))


def convert_area_colour(colour: str) -> str:
    """Return the page's colour for an area of ``#rrggbb`` that hatches and texts lie on."""
    light_rgb = _parse(colour)
    if _is_grey(light_rgb):
        return _convert_grey(light_rgb[0])
    white_share = min(light_rgb) / 255
    pure_rgb = [
        round((component - 255 * white_share) / (1 - white_share)) for component in light_rgb
    ]
    dark_rgb = _mix(_lift(pure_rgb), DARK_PAPER, white_share)
    share = 0.0
    while _compute_luminance(_mix(dark_rgb, DARK_PAPER, share)) > AREA_LUMINANCE:
        share += 0.05
    return _format_for_schemes(colour, _mix(dark_rgb, DARK_PAPER, share))


def _parse(colour: str) -> tuple[int, ...]:
    """Return red, green and blue of ``#rrggbb``."""
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def _is_grey(colour: Sequence[int]) -> bool:
    return len(set(colour)) == 1


def _convert_grey(level: int) -> str:
    paper = round(100 * level / 255)
    if paper in (0, 100):
        return "var(--paper)" if paper else "var(--ink)"
    return f"color-mix(in srgb, var(--paper) {paper}%, var(--ink))"


def _format_for_schemes(light_colour: str, dark_rgb: Sequence[int]) -> str:
    dark_text = f"#{bytes(dark_rgb).hex()}"
    return (
        light_colour
        if dark_text == light_colour.lower()
        else f"light-dark({light_colour}, {dark_text})"
    )


def _lift(colour: Sequence[int]) -> Sequence[int]:
    """Mix a colour with ink until it stands out from dark paper."""
    share = 0.0
    while _compute_luminance(_mix(colour, DARK_INK, share)) < MARK_LUMINANCE:
        share += 0.05
    return _mix(colour, DARK_INK, share)


def _mix(colour: Sequence[int], other_colour: Sequence[int], share: float) -> Sequence[int]:
    """Return a mixture with a share of the other colour."""
    return [
        round((1 - share) * component + share * other_component)
        for component, other_component in zip(colour, other_colour, strict=True)
    ]


def _compute_luminance(colour: Sequence[int]) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    shares = (component / 255 for component in colour)
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
