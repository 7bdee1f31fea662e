"""One of Ocean's mock chips."""

from __future__ import annotations

import pytest
from dwave.system.testing import MockDWaveSampler


@pytest.fixture(scope="module")
def chip():
    return MockDWaveSampler(topology_type="zephyr", topology_shape=[3, 4], parameter_warnings=False)
