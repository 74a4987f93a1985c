"""Rules about hand-over, restart, swapping, and tokens that move as one."""

from __future__ import annotations

from dejavubench.config.experiment import OPTIONS
from dejavubench.config.options.field import flag_of
from dejavubench.config.plan import Plan
from dejavubench.config.rules.rule import (
    format_given,
    format_list,
    list_chosen_destinations,
    make_rule,
)
from dejavubench.records.destination_info import NO_STREAMING
from dejavubench.transports.registry import list_usable_transports


def _has_rounding_difference(plan: Plan) -> bool:
    """Return whether products of the two sides may differ in the last bits of a half type."""
    experiment = plan.experiment
    # Another split or another height of the matrices adds up in another order.
    has_other_tensor_size = experiment.sink_tensor_para_size not in (
        None,
        experiment.tensor_para_size,
    )
    has_other_microbatch_size = any(
        experiment.sink_ubatch_size not in (None, size) for size in experiment.ubatch_size
    )
    if not (experiment.handoff and experiment.verify):
        return False
    if experiment.device == "cuda":
        # The kernels of a decode step add up each row of up to 16 in one order, so that another
        # microbatch rounds alike as a rule. Ranks that share a layer add up their parts.
        return has_other_tensor_size
    # Where the CPU has no bf16, products are computed in fp32: they differ too little to change a
    # token.
    in_bf16 = plan.has_native_bf16 and "bf16" in experiment.inference_data_type
    return in_bf16 and (has_other_tensor_size or has_other_microbatch_size)


def _advise_on_rounding(plan: Plan) -> str:
    if plan.experiment.device == "cuda":
        return (
            "--handoff to sinks of another --sink-tensor-para-size: on a GPU the two sides round "
            "differently, so tokens may differ. Use --no-verify"
        )
    return (
        "--handoff to sinks of another --sink-tensor-para-size or --sink-ubatch-size: in bf16 "
        "the two sides round differently, so tokens may differ. Use --inference-data-type fp32 "
        "or --no-verify"
    )


def _list_names_that_hand_over() -> list[str]:
    return [transport.name for transport in list_usable_transports() if transport.hands_over]


HANDOVER = (
    make_rule(
        lambda plan: not plan.experiment.handoff and plan.experiment.is_given("handoff_tokens"),
        lambda plan, _: f"{format_given(plan, 'handoff_tokens')} needs --handoff",
    ),
    make_rule(
        lambda plan: (
            plan.experiment.handoff
            # Exactly one destination, and that one hands over.
            and (
                len(plan.experiment.streaming) > 1
                or [transport.hands_over for transport in list_chosen_destinations(plan)] != [True]
                or plan.experiment.compare
            )
        ),
        lambda plan, _: (
            "--handoff needs --streaming "
            f"{' or '.join(_list_names_that_hand_over())} alone, without "
            "--compare: sinks of other destinations have no model yet"
        ),
    ),
    make_rule(_has_rounding_difference, lambda plan, _: _advise_on_rounding(plan)),
    make_rule(
        lambda plan: (
            plan.experiment.handoff
            and plan.experiment.handoff_tokens >= min(plan.experiment.output_len)
        ),
        lambda plan, _: (
            f"--handoff-tokens {plan.experiment.handoff_tokens} leaves nothing for the sinks: "
            f"--output-len is {min(plan.experiment.output_len)}"
        ),
    ),
)
"""Rules of ``--handoff``."""


def _find_changed_option(plan: Plan) -> str | None:
    if plan.experiment.resume is None:
        return None
    # A flag that repeats the fixed value asks for nothing else, so it is no conflict.
    return next(
        (
            key
            for key, info in OPTIONS.items()
            if info.fixed_on_restart and getattr(plan.experiment, key) != info.value_on_restart
        ),
        None,
    )


RESTART = (
    make_rule(
        lambda plan: (
            plan.experiment.resume is not None
            and (len(plan.points) > 1 or [arm.on_disk for arm in plan.arms] != [True])
        ),
        lambda plan, _: (
            "--restart-request continues one request that was streamed to disk: it takes no lists "
            "and no other destination"
        ),
    ),
    make_rule(
        _find_changed_option,
        lambda plan, key: (
            f"{format_given(plan, key)} cannot be combined with --restart-request, which runs one "
            "request once"
        ),
    ),
)
"""Rules of a restart."""


def _count_most_steps(plan: Plan) -> int:
    """Return the most decode steps that the sources take in a request of this run."""
    return max(point.generated_token_count for point in plan.points) - 1


def _format_length_option(plan: Plan) -> str:
    """Return the option that decides how many tokens the sources generate."""
    experiment = plan.experiment
    if experiment.handoff:
        return f"--handoff-tokens {experiment.handoff_tokens}"
    return f"--output-len {format_list(experiment.output_len)}"


FLUSHING = (
    make_rule(
        lambda plan: (
            plan.experiment.is_given("flush_interval")
            and not list_chosen_destinations(plan)
            and not plan.experiment.swap
        ),
        lambda plan, _: (
            f"{format_given(plan, 'flush_interval')} needs a destination: --streaming "
            f"{NO_STREAMING} streams nothing"
        ),
    ),
    make_rule(
        lambda plan: plan.experiment.is_given("flush_interval") and plan.experiment.swap,
        lambda plan, _: (
            f"{format_given(plan, 'flush_interval')} cannot be combined with --swap: a cache is "
            "evicted after each step, so the step's keys and values must have left. Drop one of "
            "them"
        ),
    ),
    make_rule(
        # At least 1: the default fits a request without decode steps, too.
        lambda plan: plan.experiment.flush_interval > max(1, _count_most_steps(plan)),
        lambda plan, _: (
            f"{format_given(plan, 'flush_interval')} is more than the {_count_most_steps(plan)} "
            f"decode steps that the sources stream ({_format_length_option(plan)}). Use at most "
            f"{max(1, _count_most_steps(plan))}"
        ),
    ),
)
"""Rules of ``--flush-interval``."""


def _find_option_not_with_swap(plan: Plan) -> str | None:
    if not plan.experiment.swap:
        return None
    if plan.experiment.handoff:
        return "handoff"
    return "resume" if plan.experiment.resume else None


SWAP = (
    make_rule(
        lambda plan: not plan.experiment.swap and plan.experiment.is_given("resident"),
        lambda plan, _: f"{format_given(plan, 'resident')} needs --swap",
    ),
    make_rule(
        _find_option_not_with_swap,
        lambda plan, key: (
            f"--swap cannot be combined with {flag_of(key)}: it measures whole requests. Drop one "
            "of them"
        ),
    ),
    make_rule(
        lambda plan: (
            plan.experiment.swap and plan.experiment.resident >= plan.experiment.pipeline_para_size
        ),
        lambda plan, _: (
            f"--resident {plan.experiment.resident} holds all microbatches in flight, so nothing "
            "is swapped. Use a --pipeline-para-size larger than --resident, not "
            f"{plan.experiment.pipeline_para_size}"
        ),
    ),
)
"""Rules of ``--swap``."""
