"""The mark of tests that need NIXL."""

from __future__ import annotations

import pytest

from dejavubench.transports.nixl import NOT_INSTALLED, has_nixl

needs_nixl = pytest.mark.skipif(not has_nixl(), reason=NOT_INSTALLED)
