"""Names to classes, loaded on demand: one table per family, and a dotted path of the user's own class works too."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from sloguard.errors import SpecError


def load(table: Mapping[str, str], name: str, field: str, method: str | None = None) -> Any:
    """The class that `name` stands for: a key of `table` ("module:Class") or a path "package.module:Class" itself.

    `method` is one that every class of the family has. Raises SpecError, naming `field`, where there is no such class;
    an error inside the user's own module is left as it is, for its traceback tells more.
    """
    path = table.get(name, name)
    module, colon, attribute = path.partition(":")
    choices = f"Choose one of {', '.join(sorted(table))}, or give your own class as package.module:Class."
    if not colon:
        raise SpecError(field, name, "no such name", choices)
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise SpecError(field, name, "is not of the form package.module:Class", choices)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise SpecError(field, name, f"module {module!r} can't be imported", choices) from error
    except AttributeError as error:
        raise SpecError(field, name, f"{module!r} has no {attribute!r}", choices) from error
    if not isinstance(found, type):
        raise SpecError(field, name, f"is no class but a {type(found).__name__}", choices)
    if method is not None and not callable(getattr(found, method, None)):
        raise SpecError(field, name, f"has no method {method!r}", choices)
    return found
