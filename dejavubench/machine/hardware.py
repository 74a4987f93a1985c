"""Names of :mod:`cpu`, :mod:`gpu` and :mod:`memory`, until all their users import these modules."""

from dejavubench.machine.cpu import (
    BF16_FLAGS,
    FEATURES,
    WITHOUT,
    cpu_flags,
    features_left_out,
    flags_in,
    has_bf16,
    native_bf16,
)
from dejavubench.machine.gpu import CUDA_DRIVER, NO_DEVICE, CudaDevice, cuda_devices
from dejavubench.machine.memory import (
    HUGE_PAGES,
    KEPT_PRIMITIVES,
    PRIMITIVE_CACHES,
    available_nbytes,
    bound_primitive_caches,
    prefer_huge_pages,
)

__all__ = [
    "BF16_FLAGS",
    "CUDA_DRIVER",
    "FEATURES",
    "HUGE_PAGES",
    "KEPT_PRIMITIVES",
    "NO_DEVICE",
    "PRIMITIVE_CACHES",
    "WITHOUT",
    "CudaDevice",
    "available_nbytes",
    "bound_primitive_caches",
    "cpu_flags",
    "cuda_devices",
    "features_left_out",
    "flags_in",
    "has_bf16",
    "has_nixl",
    "native_bf16",
    "prefer_huge_pages",
]


def has_nixl() -> bool:
    """Return True if NIXL's Python package is installed here. Does not import it."""
    from importlib.util import find_spec

    return find_spec("nixl") is not None
