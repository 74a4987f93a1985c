"""``python -m dejavubench.machine.mpi_probe``: the MPI library, not started, as JSON.

Under the launcher of another MPI, a library may end its process as it starts.
"""

from __future__ import annotations

import json


def main() -> None:
    """Print the library's name and version; MPI is loaded but not initialised."""
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    name, release = MPI.get_vendor()
    print(json.dumps({"name": name, "version": ".".join(map(str, release))}))


if __name__ == "__main__":
    main()
