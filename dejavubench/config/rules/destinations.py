"""Rules about destinations and their sinks. What one destination asks is its transport's to say."""

from __future__ import annotations

from dejavubench.config.experiment import OPTIONS
from dejavubench.config.plan import Plan
from dejavubench.config.rules.rule import (
    format_given,
    format_list,
    list_chosen_destinations,
    make_rule,
)
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records.destination_info import NO_STREAMING
from dejavubench.transports.base import Unavailable
from dejavubench.transports.registry import list_usable_transports

_SINK_KEYS = ("sink_pipeline_para_size", "sink_tensor_para_size", "sink_ubatch_size")


def _find_sink_key(plan: Plan) -> str | None:
    return next((key for key in _SINK_KEYS if plan.experiment.is_given(key)), None)


def _list_names_with_sinks() -> list[str]:
    return [transport.name for transport in list_usable_transports() if transport.entry.remote]


def _find_sink_key_without_sinks(plan: Plan) -> str | None:
    return None if plan.needs_sinks else _find_sink_key(plan)


_STAGING_KEYS = ("staging_mib", "staging_slots")
"""Settings of the stream alone: without one, all points of their sweep would be alike."""


def _find_staging_of_no_stream(plan: Plan) -> str | None:
    if list_chosen_destinations(plan) or plan.experiment.swap:
        return None
    return next((key for key in plan.experiment.swept if key in _STAGING_KEYS), None)


def _find_external_sink_of_another_setup(plan: Plan) -> tuple[str, str] | None:
    key = _find_sink_key(plan)
    external_name = next(
        (
            transport.name
            for transport in list_chosen_destinations(plan)
            if transport.entry.external_sink
        ),
        None,
    )
    return (key, external_name) if key and external_name else None


SINKS = (
    make_rule(
        lambda plan: not list_chosen_destinations(plan) and len(plan.experiment.level) > 1,
        lambda plan, _: (
            f"--level {format_list(plan.experiment.level)} needs a destination: --streaming "
            f"{NO_STREAMING} streams nothing at any level"
        ),
    ),
    make_rule(
        _find_staging_of_no_stream,
        lambda plan, key: (
            f"{format_given(plan, key)} needs a destination: --streaming {NO_STREAMING} stages "
            "nothing"
        ),
    ),
    make_rule(
        lambda plan: (
            plan.experiment.sample_extents
            and (
                not list_chosen_destinations(plan)
                or all(LEVELS[level_name].buffered for level_name in plan.experiment.level)
            )
        ),
        lambda plan, _: (
            "--sample-extents needs a destination and --level 0 or 0-batched: other levels do not "
            "move single extents"
        ),
    ),
    make_rule(
        lambda plan: (
            plan.experiment.sample_extents and (plan.experiment.handoff or plan.experiment.swap)
        ),
        lambda plan, _: "--sample-extents cannot be combined with --handoff or --swap",
    ),
    make_rule(
        _find_sink_key_without_sinks,
        lambda plan, key: (
            f"{format_given(plan, key)} needs a destination with sinks "
            f"({', '.join(_list_names_with_sinks())}), and none can "
            "run here"
        ),
    ),
    make_rule(
        _find_external_sink_of_another_setup,
        lambda plan, conflict: (
            f"{format_given(plan, conflict[0])} cannot be combined with --streaming {conflict[1]}: "
            "its sinks have the setup of the sources. Drop one of them"
        ),
    ),
)
"""Rules of options that need a destination, or sinks."""


# ---- destinations ----


def _lets_models_share(plan: Plan, key: str) -> bool:
    """Return whether an option lets parts of the model share a GPU, whatever the destination."""
    loopbacks = [
        transport.loopback
        for transport in list_usable_transports()
        if transport.loopback is not None
    ]
    has_parts = plan.experiment.sources > 1 or plan.experiment.handoff
    return (
        plan.experiment.device == "cuda"
        and has_parts
        and any(loopback.option == key for loopback in loopbacks)
    )


def _find_option_of_no_destination(plan: Plan) -> tuple[str, str] | None:
    """Return an option that is given without its destinations, and those destinations."""
    used_names = {*plan.experiment.streaming, *plan.experiment.swap}
    owners: dict[str, list[str]] = {}
    for transport in list_usable_transports():
        for key in transport.options:
            owners.setdefault(key, []).append(transport.name)
    return next(
        (
            (key, " or ".join(names))
            for key, names in owners.items()
            # A plugin of another version may name an option that is not there.
            if key in OPTIONS and plan.experiment.is_given(key) and used_names.isdisjoint(names)
            if not _lets_models_share(plan, key)
        ),
        None,
    )


def _find_conflict_of_destinations(plan: Plan) -> str | None:
    transports = list_chosen_destinations(plan)
    messages = (transport.conflict(plan.experiment, transports) for transport in transports)
    return next((message for message in messages if message), None)


def _find_unverifiable_destination(plan: Plan) -> str | None:
    """Return a destination that nobody can verify: no rank receives, and no source reads back."""
    if not plan.experiment.verify:
        return None
    # A yardstick is not verified at all.
    entries = [
        transport.entry
        for transport in list_chosen_destinations(plan)
        if transport.entry.moves_cache
    ]
    return next((entry.name for entry in entries if not (entry.remote or entry.readable)), None)


def _explain_missing_destination(plan: Plan) -> Unavailable | None:
    """Return why the only destination cannot run here; in a sweep its arms are skipped instead."""
    modes = plan.experiment.streaming
    return plan.unavailable.get(modes[0]) if len(modes) == 1 else None


DESTINATIONS = (
    make_rule(
        _find_option_of_no_destination,
        lambda plan, conflict: f"{format_given(plan, conflict[0])} needs --streaming {conflict[1]}",
    ),
    make_rule(_find_conflict_of_destinations, lambda plan, message: message),
    make_rule(
        _find_unverifiable_destination,
        lambda plan, name: (
            f"--streaming {name} cannot be verified: no chunk can be read back from {name}. Add "
            "--no-verify"
        ),
    ),
    make_rule(
        _explain_missing_destination,
        lambda plan, why_unavailable: why_unavailable.alone,
    ),
)
"""Rules about destinations and the options that belong to them."""
