"""The token that a source and its ``tcp`` sink share."""

from __future__ import annotations

import os

from dejavubench.errors import UsageError

TOKEN_VARIABLE = "DEJAVUBENCH_TOKEN"
"""The environment variable that holds the token on both sides."""


def read_token() -> bytes:
    """Return the token. It is read when it is needed and kept nowhere.

    Raises:
        UsageError: it is not set.
    """
    # As bytes, so that a token in any encoding is the same on both sides.
    token = os.fsencode(os.environ.get(TOKEN_VARIABLE, ""))
    if not token:
        raise UsageError(
            f"{TOKEN_VARIABLE} is not set. Set it to the same secret text for the run and for its "
            "sink: a sink receives only from peers that know it"
        )
    return token
