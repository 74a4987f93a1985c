"""Looking, outside the clock, at the logits that tokens were chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dejavubench.bench.engine.steps import Steps
from dejavubench.errors import DataError
from dejavubench.models.dtypes import name_of


class LogitsError(DataError):
    """Logits are NaN, infinite or all 0; the message says which."""


def check_logits(steps: Steps, prompts: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raise LogitsError if tokens were chosen from logits that mean nothing.

    Args:
        prompts: token ids [B, P] of each microbatch in flight.
        dtype: the model's, for the message.
    """
    cause = f"Numbers outgrew the range of {name_of(dtype)}, or the weights are damaged"
    for microbatch, prompt_tokens in enumerate(prompts):
        checks = steps.take_checks(microbatch)
        if not checks:  # another stage has them
            continue
        # One number of each request was kept: unusable logits make it NaN or infinite.
        values = torch.stack([values for _, values in checks]).float().cpu()
        if not values.isfinite().all():
            step, request = values.isfinite().logical_not().nonzero()[0].tolist()
            token = checks[step][0] - prompt_tokens.shape[1]
            raise LogitsError(
                f"the logits of new token {token} of request {request} in microbatch {microbatch} "
                f"are NaN or infinite ({values[step, request]}): its tokens mean nothing. {cause}"
            )
        # A norm makes all values 0 where the square of one of them is infinite.
        is_zero = (values == 0).all(dim=0)
        if is_zero.any():
            request = int(is_zero.nonzero()[0])
            raise LogitsError(
                f"all logits of request {request} in microbatch {microbatch} are 0: "
                f"its tokens mean nothing. {cause}"
            )
