"""CUDA's Multi-Process Service, without which ranks of one GPU are time-sliced."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def is_mps_running(timeout_s: float = 5.0) -> bool:
    """Return whether the service answers within ``timeout_s``."""
    # Without the service there is no pipe, and the tool, which may be missing, is not started.
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    if not (pipes / "control").exists():
        return False
    try:
        answer = subprocess.run(
            ["nvidia-cuda-mps-control"],
            input="get_server_list\n",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0
