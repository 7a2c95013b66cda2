"""Settings of every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Nothing here may fail because the machine is busy.
settings.register_profile("sloguard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sloguard")
