"""Writing result files."""

from __future__ import annotations

import os
from pathlib import Path

from sloguard.errors import SpecError


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) so that `path` holds either what it held before or all of it, even after a crash.

    Raises SpecError where the place can't be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        fix = "Give a path in a directory that can be written."
        raise SpecError("file", str(path), f"can't be written ({error.strerror})", fix) from error
