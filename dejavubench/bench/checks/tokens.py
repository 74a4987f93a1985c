"""Comparing the tokens of an arm with the tokens of the same requests without streaming."""

from __future__ import annotations

import torch


def describe_wrong_token(
    generated_tokens: torch.Tensor, expected_tokens: torch.Tensor
) -> str | None:
    """Return which token differs first, in words; None if all are equal.

    Args:
        generated_tokens, expected_tokens: [microbatches, B, T] on a source, [requests, T] on a
            sink that took over.
    """
    if torch.equal(generated_tokens, expected_tokens):
        return None
    *request_place, step = (
        int(index) for index in torch.nonzero(generated_tokens != expected_tokens)[0]
    )
    # A sink's microbatches are not the sources' ones, so there the request's number says enough.
    qualifier = (
        f" of microbatch {request_place[0]}" if len(request_place) > 1 else " after the hand-over"
    )
    return (
        f"new token {step} of request {request_place[-1]}{qualifier} is "
        f"{int(generated_tokens[*request_place, step])}, "
        f"without streaming it is {int(expected_tokens[*request_place, step])}"
    )
