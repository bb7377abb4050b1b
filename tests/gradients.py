"""How a gradient is checked against numerical differences."""

from __future__ import annotations

import pytest

#: Values of `fast_mode` of `gradcheck`: by a random projection of the Jacobian, and, which takes a second, by every
#: entry of it.
PROJECTED = [True, pytest.param(False, marks=pytest.mark.slow)]
