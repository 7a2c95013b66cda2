"""A class with options, written as one word of a command line.

    NAME[:key=value]...                    a name of the family's table
    package.module:Class[:key=value]...    one's own class; the working directory is importable
    a,b,c                                  several

What has no `=` is the class, what has one is an option; the class comes first. Options are the keyword arguments of the
class. A value is a number, `true` or `false`, or text, as in TOML but for the quotes, which text needs not have.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sloguard.errors import SpecError
from sloguard.registry import load
from sloguard.trial import Value


@dataclass(frozen=True, slots=True)
class Choice:
    """`text` is how reports call it: what the user wrote, unless that is `written`."""

    text: str
    name: str
    options: tuple[tuple[str, Value], ...] = ()
    written: str = ""

    def without(self, keys: Collection[str]) -> tuple[Choice, dict[str, Value]]:
        """The choice less the options named `keys`, and those."""
        kept = tuple((key, value) for key, value in self.options if key not in keys)
        return replace(self, options=kept), {k: v for k, v in self.options if k in keys}

    def make(
        self,
        table: Mapping[str, str],
        field: str,
        method: str,
        given: Mapping[str, Any] | None = None,
        elsewhere: Sequence[str] = (),
    ) -> Any:
        """An object of the class. `given` are arguments that are not the user's: those that the class takes are passed.
        `elsewhere` are options that the user may write too, and that were taken out (`without`).

        Raises SpecError, naming `field`, for a class that there isn't, an option it doesn't take or a value it refuses.
        """
        written = self.written or self.text
        self._check_name(table, field, written)
        made = load(table, self.name, field, method)
        parameters = inspect.signature(made).parameters
        hints = _hints(made)
        allowed = [name for name, p in parameters.items() if p.kind in _BY_NAME and name not in (given or {})]
        for key, value in self.options:
            if key not in allowed:
                names = dict.fromkeys([*allowed, *elsewhere])
                takes = f"It takes: {', '.join(names)}." if names else "It takes none."
                raise SpecError(field, written, f"{self.name} has no option {key!r}", takes)
            hint = hints.get(key, type(parameters[key].default))
            if not _fits(value, hint):
                fix = f"It takes {' or '.join(_WORDS[kind] for kind in _kinds(hint) if kind in _WORDS)}."
                raise SpecError(field, written, f"{key} takes no {type(value).__name__}", fix)
        own = {key: value for key, value in (given or {}).items() if key in parameters}
        try:
            return made(**own, **dict(self.options))
        except (SpecError, ValueError, TypeError) as error:
            raise SpecError(
                field, written, f"{self.name} refuses it: {str(error).rstrip('.')}", "Correct the option."
            ) from error

    def _check_name(self, table: Mapping[str, str], field: str, written: str) -> None:
        """Raises SpecError for slips that would read as a module that there isn't."""
        first, colon, second = self.name.partition(":")
        if first in table and colon and not second[:1].isupper():  # classes are, options are not
            raise _valueless(field, written, second)
        if first.endswith(".py"):
            fix = f"Leave out .py: {first.removesuffix('.py')}:{second or 'Class'}."
            raise SpecError(field, written, f"{first} is a file, not a module", fix)


_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


_WORDS = {bool: "true or false", int: "whole numbers", float: "numbers", str: "text"}


def _hints(made: type) -> dict[str, Any]:
    """What the arguments are annotated with; nothing where a name of it exists for type checkers alone."""
    try:
        return get_type_hints(made.__init__)
    except (NameError, AttributeError):
        return {}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows; those of a Literal are those of its values."""
    if get_origin(hint) is Literal:
        return tuple(dict.fromkeys(type(one) for one in get_args(hint)))
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Value, hint: Any) -> bool:
    """Whether the argument takes the value; `true` is no number. What is annotated beyond `_WORDS` takes anything."""
    kinds = set(_kinds(hint)) - {NoneType}
    if not kinds or not kinds <= _WORDS.keys():
        return True
    return type(value) in kinds or (float in kinds and type(value) is int)


def read_choices(text: str, field: str) -> list[Choice]:
    """Raises SpecError where a part can't be read or two are the same."""
    choices = [_read(part.strip(), field) for part in text.split(",")]
    for choice in choices:
        if choices.count(choice) > 1:
            raise SpecError(field, text, f"{choice.text!r} is given twice", "Give each once.")
    return choices


def read_choice(text: str, field: str) -> Choice:
    """Raises SpecError where it can't be read or is more than one."""
    choice, *more = read_choices(text, field)
    if more:
        raise SpecError(field, text, "is more than one", "Give one of them.")
    return choice


def _read(text: str, field: str) -> Choice:
    fix = "Write NAME or NAME:key=value, or package.module:Class:key=value."
    parts = text.split(":")
    named = list(takewhile(lambda part: "=" not in part, parts[:2]))
    if not named or not all(named):
        raise SpecError(field, text, "can't be read", fix)
    options: dict[str, Value] = {}
    for part in parts[len(named) :]:
        key, equals, value = part.partition("=")
        if key.isidentifier() and not equals:
            raise _valueless(field, text, key)
        if not key.isidentifier() or not value:
            raise SpecError(field, text, f"{part!r} is not key=value", fix)
        if key in options:
            raise SpecError(field, text, f"{key} is given twice", "Give each option once.")
        options[key] = _value(value)
    return Choice(text, ":".join(named), tuple(options.items()))


def _valueless(field: str, text: str, option: str) -> SpecError:
    return SpecError(field, text, f"{option} has no value", f"Write {option}=VALUE.")


def _value(text: str) -> Value:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text
