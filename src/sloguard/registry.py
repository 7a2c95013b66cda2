"""Names to classes, loaded on demand: one table per family, and a dotted path of the user's own class works too."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from sloguard.errors import SpecError


def load(table: Mapping[str, str], name: str, field: str) -> Any:
    """The class that `name` stands for: a key of `table` ("module:Class") or a path "package.module:Class" itself.

    Raises SpecError, naming `field`, where there is none.
    """
    path = table.get(name, name)
    module, _, attribute = path.partition(":")
    choices = f"Choose one of {', '.join(sorted(table))}, or give your own class as package.module:Class."
    if not attribute:
        raise SpecError(field, name, "no such name", choices)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise SpecError(field, name, f"module {module!r} can't be imported", choices) from error
    except AttributeError as error:
        raise SpecError(field, name, f"{module!r} has no {attribute!r}", choices) from error
