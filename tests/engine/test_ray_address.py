"""An address of a Ray cluster, before Ray is asked."""

from __future__ import annotations

import pytest

from sloguard.engine.ray_cluster import cluster
from sloguard.errors import SpecError


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_address_where_nobody_answers_is_said_at_once(address: str):
    with pytest.raises(SpecError, match=r"--ray-address.*nobody answers there"), cluster(address):
        pass
