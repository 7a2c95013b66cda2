"""A real vLLM and a model for it, made by the project's own tool."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from paths import REPO

VLLM_PYTHON = Path(os.environ.get("SLOGUARD_VLLM_PYTHON", REPO / ".venv-vllm" / "bin" / "python"))

needs_vllm = pytest.mark.skipif(
    not VLLM_PYTHON.exists(), reason=f"no vLLM at {VLLM_PYTHON}: make .venv-vllm, or set SLOGUARD_VLLM_PYTHON"
)


def demo_model_tool() -> ModuleType:
    """tools/make_demo_model.py as a module."""
    spec = importlib.util.spec_from_file_location("make_demo_model", REPO / "tools" / "make_demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    return tool
