"""What one request asks for, from the values that came with it.

    slo_class         a named class of the operator's, whose promises hold unless the request has its own
    slo_ttft_ms       milliseconds to the first token
    slo_tpot_ms       milliseconds a token after it
    slo_think_tpot_ms milliseconds a token while the model reasons; slo_tpot_ms then holds for what follows
    slo_stages_left   how many requests of the same conversation will follow this one at once, as in a tool loop
    slo_conversation  a name that these requests share: what later ones add is learnt from it

Four more are between a router and its replicas; a door takes them from nobody else, and a scheduler believes them only
beside `slo_router`:

    slo_hops_left     how many other replicas could still be asked: one that can't promise may decline
    slo_ticket        the router's name for the request, by which the replica says that it has it
    slo_waited_ms     how long it has been on its way already: promises count from its arrival at the router
    slo_router        what only the replica's own router knows

They come as `vllm_xargs` of the body or as headers (`x-slo-ttft-ms`), so as numbers or as text. A request without any
of the first three is of the default class; where there is none, or the class promises nothing, it is best effort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from sloguard.errors import SpecError
from sloguard.slo import BEST_EFFORT, NO_SLO, StageSLO

CUSTOM = "custom"  # what a request of no class with a promise of its own is counted under
FIELDS = ("slo_class", "slo_ttft_ms", "slo_tpot_ms", "slo_think_tpot_ms", "slo_stages_left", "slo_conversation")
HOPS_LEFT, TICKET, WAITED, ROUTER = OF_ROUTERS = ("slo_hops_left", "slo_ticket", "slo_waited_ms", "slo_router")
DECLINED = "sloguard_declined"  # the stop_reason of an answer that a replica left to another
SHORTEST_MS, LONGEST_MS = 1e-3, 86_400_000.0
MOST_STAGES, MOST_HOPS = 1000, 100_000
LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class Asked:
    slo_class: str
    slo: StageSLO
    think_tpot_s: float | None = None
    stages_left: int = 0
    conversation: str = ""
    hops_left: int = 0
    ticket: str = ""
    waited_s: float = 0.0

    @property
    def best_effort(self) -> bool:
        return self.slo == NO_SLO and self.think_tpot_s is None


def read_asked(given: Mapping[str, object], classes: Mapping[str, StageSLO], default_class: str | None) -> Asked:
    """Raises SpecError, naming the field, for what is none of these."""
    if unknown := [name for name in given if name.startswith("slo_") and name not in (*FIELDS, *OF_ROUTERS)]:
        raise SpecError(unknown[0], given[unknown[0]], "no such field", f"There are {', '.join(FIELDS)}.")
    named = "slo_class" in given
    name = given["slo_class"] if named else None if _has_promise(given) else default_class
    known = {BEST_EFFORT: NO_SLO, **classes}
    if (named or name is not None) and not (isinstance(name, str) and name in known):
        raise SpecError("slo_class", name, "no such class", f"Choose one of {', '.join(sorted(known))}.")
    of_class = known[name] if isinstance(name, str) else NO_SLO
    slo = StageSLO(
        _seconds(given, "slo_ttft_ms", of_class.ttft_s),
        _seconds(given, "slo_tpot_ms", of_class.tpot_s),
    )
    think_tpot_s = _seconds(given, "slo_think_tpot_ms", None)
    own = BEST_EFFORT if slo == NO_SLO and think_tpot_s is None else CUSTOM
    return Asked(
        str(name) if name is not None else own,
        slo,
        think_tpot_s,
        _count(given, "slo_stages_left", MOST_STAGES),
        _name(given, "slo_conversation"),
        _count(given, HOPS_LEFT, MOST_HOPS),
        _name(given, TICKET),
        _waited_s(given),
    )


def _has_promise(given: Mapping[str, object]) -> bool:
    return "slo_ttft_ms" in given or "slo_tpot_ms" in given


def _seconds(given: Mapping[str, object], field: str, otherwise: float | None) -> float | None:
    if field not in given:
        return otherwise
    value = _number(given[field], field)
    if not SHORTEST_MS <= value <= LONGEST_MS:
        fix = f"Give milliseconds, {SHORTEST_MS} to {LONGEST_MS:.0f} (a day)."
        raise SpecError(field, given[field], "is no time to promise", fix)
    return value / 1000


def _waited_s(given: Mapping[str, object]) -> float:
    value = _number(given.get(WAITED, 0), WAITED)
    if not 0 <= value <= LONGEST_MS:
        raise SpecError(
            WAITED, value, "is no time to have waited", f"Give milliseconds, 0 to {LONGEST_MS:.0f} (a day)."
        )
    return value / 1000


def _count(given: Mapping[str, object], field: str, most: int) -> int:
    value = _number(given.get(field, 0), field)
    if not (0 <= value <= most and value == int(value)):
        raise SpecError(field, given[field], "is no count", f"Give a whole number from 0 to {most}.")
    return int(value)


def _name(given: Mapping[str, object], field: str) -> str:
    value = given.get(field, "")
    if not isinstance(value, str) or len(value) > LONGEST_NAME or (field in given and not value):
        raise SpecError(field, value, "is no name", f"Give text of 1 to {LONGEST_NAME} characters.")
    return value


def _number(value: object, field: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):  # of text, of an integer beyond every float
        number = None
    if number is None or not isfinite(number):
        raise SpecError(field, value, "is not a number", "Give a number.")
    return number
