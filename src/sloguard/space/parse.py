"""Knobs written by a user as TOML, one table per knob:

    [max_num_seqs]            type = "int"    low = 4     high = 128    log = true
    [gpu_memory_utilization]  type = "float"  low = 0.6   high = 0.95
    [kv_cache_dtype]          type = "categorical"        choices = ["auto", "fp8"]
    [enable_chunked_prefill]  type = "bool"   when = { enforce_eager = false }

(each on lines of its own). A knob follows the one its `when` names.
"""

from __future__ import annotations

import tomllib
from typing import Any, cast

from sloguard.errors import SpecError
from sloguard.space.knobs import Categorical, Condition, Float, Int, Knob
from sloguard.trial import Value

_FIELDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {  # type: (required fields, optional ones)
    "int": (frozenset({"low", "high"}), frozenset({"log", "when"})),
    "float": (frozenset({"low", "high"}), frozenset({"log", "when"})),
    "bool": (frozenset(), frozenset({"when"})),
    "categorical": (frozenset({"choices"}), frozenset({"when"})),
}


def knobs_from_toml(text: str) -> tuple[Knob, ...]:
    """Raises SpecError naming the knob and its field where the text doesn't describe knobs."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError("TOML", "...", str(error), "Correct the line it names") from error
    if not tables:
        raise SpecError("knobs", 0, "no knob is given", 'Add a table such as [max_num_seqs] with type = "int"')
    return tuple(_knob(name, table) for name, table in tables.items())


def _knob(name: str, table: object) -> Knob:
    if not isinstance(table, dict):
        raise SpecError(name, repr(table), "a knob is a table", f'Write [{name}] with type = "int", "float" ...')
    fields = dict(cast(dict[str, Any], table))
    kind = fields.pop("type", None)
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise SpecError(f"{name}.type", kind, "no such type of knob", f"Use one of {', '.join(_FIELDS)}")
    required, optional = _FIELDS[kind]
    for field in fields:
        if field not in required | optional:
            known = ", ".join(sorted(required | optional))
            raise SpecError(
                f"{name}.{field}", fields[field], f"a knob of type {kind} has no such field", f"It has {known}"
            )
    for field in sorted(required - fields.keys()):
        raise SpecError(f"{name}.{field}", None, f"a knob of type {kind} needs it", f"Add {field} = ...")
    when = _condition(name, fields.get("when"))
    match kind:
        case "int":
            return Int(name, fields["low"], fields["high"], _flag(name, "log", fields.get("log", False)), when)
        case "float":
            return Float(name, fields["low"], fields["high"], _flag(name, "log", fields.get("log", False)), when)
        case "bool":
            return Categorical(name, (False, True), when)
        case _:
            return Categorical(name, _choices(name, fields["choices"]), when)


def _flag(name: str, field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{name}.{field}", value, "it is true or false", "Write it without quotes")
    return value


def _choices(name: str, choices: object) -> tuple[Value, ...]:
    if not isinstance(choices, list):
        raise SpecError(f"{name}.choices", choices, "not a list", 'Write e.g. ["auto", "fp8"]')
    for choice in cast(list[object], choices):
        if not isinstance(choice, bool | int | float | str):
            raise SpecError(f"{name}.choices", choice, "a choice is a text, a number or a bool", "Replace it")
    return tuple(cast(list[Value], choices))


def _condition(name: str, when: object) -> Condition | None:
    if when is None:
        return None
    if not isinstance(when, dict) or len(cast(dict[str, Any], when)) != 1:
        raise SpecError(
            f"{name}.when",
            repr(cast(object, when)),
            "a condition is one knob and its value",
            "Write { enforce_eager = false }",
        )
    return next(iter(cast(dict[str, Value], when).items()))
