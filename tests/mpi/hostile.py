"""The command line with a full standard output, or few open files: ``hostile.py WHAT …``."""

from __future__ import annotations

import os
import resource
import sys

from dejavubench.cli import main

behaviour = sys.argv.pop(1)
if behaviour == "full":
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
else:
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
main(prog_name="dejavubench")
