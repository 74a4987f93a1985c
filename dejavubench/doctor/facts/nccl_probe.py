"""``python -m dejavubench.doctor.facts.nccl_probe GPUS``: how NCCL connects GPUs, as JSON.

NCCL writes the ways that it chooses to its log, at the level INFO. The probe sends a message
between the first GPUs of this host and reads that log.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

# Without these subsystems the log does not say how it connects; with all of them it is megabytes.
LOG_VARIABLES = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET,P2P,SHM"}

_BETWEEN = re.compile(r"\[\d+\] -> \d+\[\d+\](?: \[\w+\])? via (\S+)")
_NETWORK = re.compile(r"NET/(IB|Socket) : Using (.*)|Using network (\S+)")


def find_connection(lines: Iterable[str]) -> str | None:
    """Return how NCCL connected two GPUs, such as ``P2P/CUMEM``; None if it connected none."""
    matches = (_BETWEEN.search(line) for line in lines)
    # "/read" says which side issues the copies, not which way they take.
    return next((match[1].removesuffix("/read") for match in matches if match is not None), None)


def find_network_transport(lines: Iterable[str]) -> str | None:
    """Return the transport of NCCL between hosts, with its devices; None if it does not say."""
    devices_of: dict[str, str] = {}
    transport = None
    for line in lines:
        match = _NETWORK.search(line)
        if match is None:
            continue
        if match[1]:
            devices = re.findall(r"\[\d+\]([\w.\-:]+)", match[2])
            devices_of[match[1]] = " ".join(device.partition(":")[0] for device in devices)
        else:
            transport = match[3]
    if transport is None:
        transport = next(iter(devices_of), None)
    if transport is None:
        return None
    return " ".join((transport, devices_of.get(transport, ""))).strip()


def probe_nccl(gpu_count: int) -> dict[str, Any]:
    """Send a message between GPU 0 and GPU 1; with one GPU only start NCCL."""
    import torch

    report: dict[str, Any] = {"problem": None}
    nccl_version = torch.cuda.nccl.version() if torch.cuda.is_available() else ()
    report["versions"] = {"torch": ".".join(map(str, nccl_version))} if nccl_version else {}
    with tempfile.NamedTemporaryFile("r", prefix="dejavubench-doctor-", errors="replace") as log:
        # Before cupy's NCCL is loaded, which reads them once.
        os.environ.update(LOG_VARIABLES, NCCL_DEBUG_FILE=log.name)
        try:
            report["versions"]["cupy"] = _connect(gpu_count)
        except Exception as error:  # noqa: BLE001 - whatever cupy, CUDA or NCCL have to say
            report["problem"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        lines = log.read().splitlines()
    return {
        **report,
        "between": find_connection(lines),
        "network": find_network_transport(lines),
    }


def _connect(gpu_count: int) -> str:
    """Return cupy's version of NCCL, after a message between the GPUs."""
    import cupy
    from cupy.cuda import nccl

    version_number = int(nccl.get_version())
    comms = nccl.NcclCommunicator.initAll(list(range(gpu_count)))
    if gpu_count > 1:
        buffers = []
        for device in range(2):
            with cupy.cuda.Device(device):
                buffers.append(cupy.zeros(1 << 20, dtype=cupy.uint8))
        # In a group, as one process drives both GPUs: a send alone would wait for its receive.
        nccl.groupStart()
        for device, call in ((0, comms[0].send), (1, comms[1].recv)):
            with cupy.cuda.Device(device):
                buffer = buffers[device]
                call(buffer.data.ptr, buffer.size, nccl.NCCL_UINT8, 1 - device, 0)
        nccl.groupEnd()
        for device in range(2):  # connections are made, and logged, by the first message
            cupy.cuda.Device(device).synchronize()
    return f"{version_number // 10000}.{version_number // 100 % 100}.{version_number % 100}"


if __name__ == "__main__":
    # NCCL may print its version on stdout, which holds the JSON alone.
    stdout_copy = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(probe_nccl(int(sys.argv[1]))), file=stdout_copy, flush=True)
    os._exit(0)
