"""Settings of every test."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from demo_model import demo_model_tool
from paths import REPO

# Nothing here may fail because the machine is busy, nor a change in CI for an example that it has not to do with: new
# examples are looked for where a developer runs the tests.
settings.register_profile(
    "sloguard", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("sloguard")

# A job in a shell's background ignores Ctrl-C, and so would every command that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_tiny() -> Path:
    """A directory with the smallest demo model."""
    return demo_model_tool().make("demo-tiny", REPO / "models" / "demo-tiny")
