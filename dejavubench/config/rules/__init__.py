"""Which options do not fit together. Rules are tried in order; the first conflict is reported."""

from __future__ import annotations

from dejavubench.config.plan import Plan
from dejavubench.config.rules.destinations import DESTINATIONS, SINKS
from dejavubench.config.rules.rule import OptionRule
from dejavubench.config.rules.scenarios import FLUSHING, HANDOVER, RESTART, SWAP
from dejavubench.config.rules.sizes import LIMITS, MODEL, NO_FP32_ON_CUDA, PROMPTS, SIZES

__all__ = ["NO_FP32_ON_CUDA", "RULES", "conflict"]

RULES: tuple[OptionRule, ...] = (
    *LIMITS,  # first: nothing is made of each point or worker before they hold
    *MODEL,
    *PROMPTS,
    *SINKS,
    *HANDOVER,
    *RESTART,
    *SWAP,
    *FLUSHING,
    *DESTINATIONS,
    *SIZES,
)


def find_conflict(plan: Plan) -> str | None:
    """Return the message of the first rule that a plan breaks."""
    return next((message for rule in RULES if (message := rule(plan))), None)
