"""``nccl``: from a source's GPU to its sink's, by NVIDIA's NCCL."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.dejavulib.destinations.registry import NCCL
from dejavubench.transports.base import Loopback, Missing, Options, ProbeNames, Style, Transport


class NCCLTransport(Transport):
    entry = NCCL
    order = 40
    label = "remote GPU (NCCL)"
    help = "a remote GPU"
    style = Style("#CC79A7", "xx")
    options = ("nccl_loopback",)
    copy_s = 1e-5
    loopback = Loopback(
        "nccl_loopback", "nccl-loopback", "loopback on one GPU (NCCL)", Style("#D55E00", "oo")
    )
    library = "nccl"
    probe_names = ProbeNames(ceiling_on_gpu="nccl-send")

    def missing(self, options: Options) -> Missing | None:
        if options.device == "cuda":
            return None
        return Missing(
            "no CUDA device",
            "streaming nccl moves the cache from GPU to GPU: it needs a CUDA device",
        )

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        if not self.is_loopback(options) or options.device != "cuda":
            return None
        # Only this destination can share a GPU; each other one that fills GPUs needs one per rank.
        others = [each.name for each in chosen if each.entry.device_memory and not each.loopback]
        if not others:
            return None
        return (
            f"nccl_loopback cannot be combined with streaming {others[0]}: "
            f"{others[0]} needs one GPU per rank. Drop one of them"
        )


TRANSPORT = NCCLTransport()
