"""``python -m dejavubench.doctor.facts.nixl_probe``: plug-ins and backends of NIXL, as JSON."""

from __future__ import annotations

import json
import os
import sys


def probe_nixl() -> dict[str, object]:
    """Make an agent as the destination does, and ask it."""
    from nixl import _api

    # Without its own thread, as in the destination: the caller polls.
    config = _api.nixl_agent_config(enable_prog_thread=False)
    agent = _api.nixl_agent("doctor", config)
    return {"plugins": sorted(agent.get_plugin_list()), "backends": sorted(agent.backends)}


if __name__ == "__main__":
    # NIXL's own lines go to stderr, so that stdout holds the JSON alone.
    stdout_copy = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(probe_nixl()), file=stdout_copy, flush=True)
    sys.stdout.flush()
    os._exit(0)  # an agent's end may take seconds
