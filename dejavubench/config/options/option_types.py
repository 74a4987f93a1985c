"""Readers of option values, for pydantic: any object in, a sane value out, or ValueError.

The message is one line that shows the value. A reader looks at the value alone: what depends on
this machine, on a file or on another option is settled by :mod:`dejavubench.config.resolve`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from dejavubench import units, values
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.models.hub import specs
from dejavubench.records.destination_info import NO_STREAMING
from dejavubench.transports import registry
from dejavubench.values import format_value

UNLIMITED = "unlimited"
"""The rate of a link that nothing limits."""

LOWEST_TEMPERATURE = 1e-3
"""Least temperature above 0. Logits that are divided by much less are beyond fp32."""

HIGHEST_TEMPERATURE = 1e3
"""Highest temperature: beyond it all tokens are about equally likely."""

LEAST_TOP_P = 1e-6
"""Least ``--top-p``: a smaller one takes the most likely token, as temperature 0 does."""

LONGEST_NOTE = 10_000
"""Characters of a note."""

LONGEST_NAME = 100
"""Characters of a run's name, to which the folder's name adds a date."""

LONGEST_NAME_NBYTES = 200
"""Bytes of a run's name in UTF-8: file systems allow 255 for the name of a folder."""

MOST_ROUNDS = 1_000_000
"""Rounds, and warm-up iterations: far more than a run can make."""

LEAST_RANK_TIMEOUT_S = 1.0
"""Seconds. On a busy machine a sound rank may be silent for that long."""


def as_list(value: Any) -> Any:
    """Read a TOML list, a comma-separated string or one value as a tuple without repeats."""
    choices = as_items(value)
    # In Python true is an integer, and would pass as 1.
    if any(isinstance(choice, bool) for choice in choices):
        raise ValueError("true and false are not allowed in this list")
    return require_unique(choices)


def as_items(value: Any) -> tuple[Any, ...]:
    """Read a TOML list, a comma-separated string or one value as a tuple of any values."""
    if isinstance(value, str):
        choices: tuple[Any, ...] = tuple(choice.strip() for choice in value.split(","))
    else:
        choices = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not choices or "" in choices:
        raise ValueError("the list has an empty value; give at least one value between commas")
    return choices


def require_unique(choices: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the items.

    Raises:
        ValueError: a value is given twice.
    """
    texts = [choice if isinstance(choice, str) else format_value(choice) for choice in choices]
    if len(set(texts)) != len(texts):
        choices_text = ", ".join(texts)
        if len(choices_text) > values.LONGEST_VALUE:
            choices_text = format_value(choices_text)
        raise ValueError(f"{choices_text}: a value is given twice")
    return choices


def as_counts(value: Any) -> Any:
    """Read counts. They are compared as numbers: ``1,01`` gives one twice."""
    return require_unique(tuple(map(values.parse_count, as_list(value))))


def as_swept_counts(value: Any, largest_count: int = values.LARGEST_COUNT) -> Any:
    """Read the counts of a setting that is most often given once: a wrong one is named alone."""
    return require_unique(
        tuple(values.parse_count(count, most=largest_count) for count in as_items(value))
    )


def simplify_list(setting_values: tuple[Any, ...]) -> Any:
    """Return the value of a setting that is not swept, as records of older programs have it."""
    return setting_values[0] if len(setting_values) == 1 else list(setting_values)


def as_levels(value: Any) -> Any:
    """Read names of levels."""
    levels = tuple(values.text_of(name) or name for name in as_list(value))
    for level_name in levels:
        if level_name not in tuple(LEVELS):
            raise ValueError(
                f"there is no level {format_value(level_name)}; levels are {', '.join(LEVELS)}"
            )
    return levels


def as_modes(value: Any) -> Any:
    """Read names of destinations, or ``none``."""
    # An empty flag gets the message on destinations below, not the one on empty lists.
    modes = as_list(value) if value != "" else ("",)
    for mode in modes:
        if mode != NO_STREAMING and not registry.is_known(mode):
            complaint = (
                f"there is no destination {format_value(mode)}"
                if mode
                else "no destination is given"
            )
            choices = (NO_STREAMING, *registry.list_modes())
            raise ValueError(f"{complaint}; choose one or more of {', '.join(choices)}")
    return modes


def describe_destinations() -> str:
    """Return the names of all destinations for the help, each with a few words."""
    descriptions = (
        f"{transport.name} ({transport.help})" if transport.help else transport.name
        for transport in registry.list_usable_transports()
    )
    return ", ".join((NO_STREAMING, *descriptions))


def as_durabilities(value: Any) -> Any:
    """Read durabilities that some destination offers."""
    durabilities = [
        name
        for transport in registry.list_usable_transports()
        for name in transport.entry.durabilities
    ]
    return _require_among(durabilities, as_list(value))


def _require_among(known_items: list[str], choices: Any) -> Any:
    """Return the items.

    Raises:
        ValueError: an item is not among the known ones.
    """
    for choice in choices:
        if choice not in known_items:
            *all_but_last, last_item = map(repr, known_items)
            raise ValueError(
                f"must be {', '.join(all_but_last)} or {last_item}, not {format_value(choice)}"
            )
    return choices


def as_peers(value: Any) -> Any:
    """Read addresses of sinks, ``host:port`` each. No peer at all is allowed."""
    peers = () if value in ((), []) else as_list(value)
    for peer in peers:
        units.parse_address(peer)
    return peers


def as_stores(value: Any) -> Any:
    """Read names of places that swapped caches may lie in. None at all is allowed."""
    stores = [
        transport.name for transport in registry.list_usable_transports() if transport.swapped_label
    ]
    return () if value in ((), []) else _require_among(stores, as_list(value))


def as_link(value: Any) -> Any:
    """Read the rate of a link, or ``unlimited``. The text itself is kept."""
    if value not in (None, UNLIMITED):
        units.parse_rate(value)
    return value


def as_models(value: Any) -> Any:
    """Read names of models that have a known size, or ``custom``."""
    names = as_list(value)
    for name in names:
        if name != specs.CUSTOM:
            specs.find_spec(name if isinstance(name, str) else format_value(name))
    return names


def as_name(value: Any) -> Any:
    """Read the name of a run, which becomes part of a folder's name."""
    if not isinstance(value, str):
        return value
    has_bad_character = (
        "/" in value or value.startswith(".") or not value.isprintable() or not value
    )
    is_too_long = (
        len(value) > LONGEST_NAME or len(value.encode(errors="replace")) > LONGEST_NAME_NBYTES
    )
    if has_bad_character or is_too_long or value != value.strip():
        raise ValueError(
            f"{format_value(value)} cannot name a folder: it must be printable, at most "
            f"{LONGEST_NAME} characters, without '/', a leading dot or blanks at its ends"
        )
    return value


def as_folder(value: Any) -> Any:
    """Read the path of a folder, as text; it need not exist yet."""
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError(f"{format_value(value)} is not a folder; give the path of one, as text")
    if "\0" in str(value):
        raise ValueError(f"{str(value)!a} has a NUL character, which no path may have")
    values.parse_path(value)
    return value


def as_rank_timeout(value: Any) -> float:
    """Read a time in seconds after which a silent rank is at fault; 0 switches it off."""
    # units.parse_seconds refuses 0, which is the switch here.
    if values.text_of(value) in ("0", "0s", "0.0"):
        return 0.0
    timeout_s = units.parse_seconds(value)
    if timeout_s < LEAST_RANK_TIMEOUT_S:
        raise ValueError(
            f"{format_value(value)} is too short: on a busy machine a rank may be silent for "
            "longer. Give 1s or more, or 0 to switch it off"
        )
    return timeout_s


def as_path(value: Any) -> Any:
    """Return the value itself: pydantic makes the Path, from JSON too."""
    if value is not None:
        values.parse_path(value)
    return value


def as_temperature(value: Any) -> float:
    """Read a temperature of sampling; 0 takes the most likely token."""
    temperature = values.parse_number(value)
    if temperature != 0 and not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise ValueError(
            f"must be 0 (the most likely token) or from {LOWEST_TEMPERATURE:g} to "
            f"{HIGHEST_TEMPERATURE:g}, not {format_value(value)}"
        )
    return temperature


def as_top_p(value: Any) -> Any:
    """Read the share of probability that sampling is cut to; None leaves all of it."""
    if value is None:
        return None
    top_p = values.parse_number(value)
    if not LEAST_TOP_P <= top_p <= 1:
        raise ValueError(f"must be from {LEAST_TOP_P:g} to 1, not {format_value(value)}")
    return top_p


def as_text(value: Any) -> Any:
    """Read a note: at most 10,000 characters of UTF-8, without control characters."""
    if isinstance(value, str) and any(
        ord(character) < 32 and character not in "\n\t" for character in value
    ):
        raise ValueError(f"{format_value(value)} has a control character")
    if isinstance(value, str) and len(value) > LONGEST_NOTE:
        raise ValueError(f"{format_value(value)} is longer than {LONGEST_NOTE} characters")
    # Lone surrogates stand for bytes of a command line that are no UTF-8.
    if isinstance(value, str) and any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise ValueError(f"{format_value(value)} is not UTF-8 text")
    return value


def allow_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let ``none``, as a flag's value, undo what the file says."""
    return lambda value: None if value in (None, "none") else read(value)


# ---- types of fields ----

CountOption = Annotated[int, BeforeValidator(values.parse_count)]
CountsOption = Annotated[tuple[int, ...], BeforeValidator(as_counts)]
OneOrList = PlainSerializer(simplify_list, when_used="json")
SweptCountOption = Annotated[tuple[int, ...], BeforeValidator(as_swept_counts), OneOrList]
SwitchesOption = Annotated[
    tuple[bool, ...], BeforeValidator(as_items), AfterValidator(require_unique), OneOrList
]
"""A switch that sweeps if both of its values are given."""
MaybeCountOption = Annotated[int | None, BeforeValidator(allow_none(values.parse_count))]
FolderOption = Annotated[Path | None, BeforeValidator(as_path)]
RoundsOption = Annotated[int, BeforeValidator(partial(values.parse_count, most=MOST_ROUNDS))]
