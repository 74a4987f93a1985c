"""Tokens of earlier sessions: a session whose reference differs measures another request."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dejavubench.bench.checks.cache_bits import VerificationError
from dejavubench.bench.startup.context import RunContext
from dejavubench.parallel.collectives import sleeping_bcast


def refuse_other_tokens(context: RunContext, point_id: str, tokens: Tensor) -> None:
    """Compare a point's new reference with those of earlier sessions. Collective if there are any.

    Args:
        tokens: [microbatches, B, T] on rank 0.

    Raises:
        VerificationError: on every rank, if a token differs.
    """
    continued_run = context.plan.continued_run
    if continued_run is None or point_id not in continued_run.tokens:
        return
    own_difference = (
        describe_changed_token(continued_run.tokens[point_id], tokens)
        if context.rank == 0
        else None
    )
    # Rank 0 alone has written tokens, so it decides for all.
    difference = sleeping_bcast(context.world, own_difference)
    if difference is not None:
        raise VerificationError(f"{point_id}: {difference}")


def describe_changed_token(
    earlier_tokens: Mapping[tuple[int, int], tuple[int, ...]], tokens: Tensor
) -> str | None:
    """Return where new tokens first differ from earlier ones, in words; None if nowhere."""
    for (microbatch, request), earlier_ids in earlier_tokens.items():
        new_ids = tokens[microbatch, request].tolist()
        for step, (token, earlier_token) in enumerate(zip(new_ids, earlier_ids, strict=True)):
            if token != earlier_token:
                return (
                    f"new token {step} of request {request} in microbatch {microbatch} is "
                    f"{token}, but {earlier_token} in an earlier session"
                )
    return None
