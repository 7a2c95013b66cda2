"""Writing result files."""

from __future__ import annotations

import os
from pathlib import Path

from sloguard.errors import SpecError


def check_writable(field: str, path: Path) -> None:
    """Raises SpecError where `write_text_atomic` could not write, found out by trying and leaving nothing behind."""
    fix = "Give a file in a directory that can be written."
    try:
        if not path.parent.is_dir():
            raise SpecError(field, str(path), "its directory does not exist", "Create it first.")
        if path.exists() and not path.is_file():
            raise SpecError(field, str(path), "is no regular file", fix)
        unfinished = _unfinished(path)
        unfinished.touch(exist_ok=False)
        unfinished.unlink()
    except OSError as error:
        raise SpecError(field, str(path), f"can't be written ({error.strerror})", fix) from error


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Writes `content` so that `path` holds either what it held before or all of it, even after a crash.

    Raises SpecError where the place can't be written.
    """
    unfinished = _unfinished(path)
    try:
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        fix = "Give a path in a directory that can be written."
        raise SpecError("file", str(path), f"can't be written ({error.strerror})", fix) from error
