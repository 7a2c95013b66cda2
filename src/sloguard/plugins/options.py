"""What the plugin is told, in vLLM's `--additional-config '{"sloguard": {...}}'`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, fields
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sloguard.errors import SpecError
from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.perf.learning import LearningTime
from sloguard.perf.online import OnlineTime
from sloguard.registry import load
from sloguard.sched.asked import LONGEST_MS, SHORTEST_MS
from sloguard.sched.plan_check import Checked
from sloguard.sched.policy import POLICIES, Policy
from sloguard.slo import BEST_EFFORT, StageSLO


class Promise(BaseModel):
    """Of a class, in milliseconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ttft_ms: float | None = Field(default=None, ge=SHORTEST_MS, le=LONGEST_MS)
    tpot_ms: float | None = Field(default=None, ge=SHORTEST_MS, le=LONGEST_MS)

    @classmethod
    def of(cls, slo: StageSLO) -> Promise:
        """Raises SpecError for what is no time to promise."""
        try:
            return cls(
                ttft_ms=None if slo.ttft_s is None else slo.ttft_s * 1000,
                tpot_ms=None if slo.tpot_s is None else slo.tpot_s * 1000,
            )
        except ValidationError as error:
            fix = f"Promise {SHORTEST_MS} to {LONGEST_MS:.0f} ms (a day)."
            raise _spec_error("slo", error, fix) from error

    def slo(self) -> StageSLO:
        return StageSLO(
            None if self.ttft_ms is None else self.ttft_ms / 1000, None if self.tpot_ms is None else self.tpot_ms / 1000
        )


DOOR, API_KEY, CONTROL_TOKEN = "SLOGUARD_DOOR", "SLOGUARD_API_KEY", "SLOGUARD_CONTROL_TOKEN"


class _WithClasses(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    slo_classes: dict[str, Promise] = {}
    default_class: str | None = None

    @model_validator(mode="after")
    def _has_the_default(self) -> Self:
        if self.default_class not in (None, BEST_EFFORT, *self.slo_classes):
            known = ", ".join(sorted({BEST_EFFORT, *self.slo_classes}))
            raise SpecError("default_class", self.default_class, "no such class", f"Choose one of {known}.")
        return self

    @property
    def classes(self) -> dict[str, StageSLO]:
        return {name: promise.slo() for name, promise in self.slo_classes.items()}


def known_router(environment: Mapping[str, str]) -> str | None:
    """The proof of the router before this engine; None where whoever started it left no token."""
    token = environment.get(CONTROL_TOKEN)
    return router_proof(token) if token else None


def router_proof(control_token: str) -> str:
    """What a scheduler believes a router's fields by. Not the token itself: engines may log what requests bring."""
    return hashlib.sha256(f"sloguard router {control_token}".encode()).hexdigest()


class DoorOptions(_WithClasses):
    """What the door is told, in environment variables: SLOGUARD_DOOR has all but the secrets, as JSON.

    `boards` is where the schedulers put their notices; without it nothing is known of the engine.
    """

    boards: str | None = None
    max_requests: int = Field(default=4096, ge=1)
    max_wait_s: float = Field(default=60.0, gt=0)
    api_key: str | None = Field(default=None, repr=False)
    control_token: str | None = Field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DoorOptions:
        """Raises SpecError."""
        secrets = {"api_key": environment.get(API_KEY), "control_token": environment.get(CONTROL_TOKEN)}
        try:
            given = cls.model_validate_json(environment.get(DOOR, "{}"))
        except ValidationError as error:
            raise _spec_error(DOOR, error, "Correct the variable.") from error
        if misplaced := given.model_fields_set & secrets.keys():
            fix = f"Put it into {API_KEY} or {CONTROL_TOKEN}."
            raise SpecError(DOOR, ", ".join(sorted(misplaced)), "is a secret", fix)
        for variable in (API_KEY, CONTROL_TOKEN):
            if environment.get(variable) == "":
                raise SpecError(variable, "", "is empty", "Give a secret, or unset the variable.")
        return given.model_copy(update=secrets)


class StepTimes(BaseModel):
    """A batch time (perf/batch_time.py), as `sloguard profile` finds one: each piece is a list of its coefficients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pieces: list[list[float]]
    curve: list[tuple[int, float]] = []
    cpu_step_s: float = 0.0
    cpu_sequence_s: float = 0.0
    launch_s: float = 0.0
    draft_step_s: float = 0.0
    graph_sizes: list[int] = []

    @classmethod
    def of(cls, time: BatchTime) -> StepTimes:
        return cls(
            pieces=[list(astuple(piece)) for piece in time.pieces],
            curve=list(time.curve),
            cpu_step_s=time.cpu_step_s,
            cpu_sequence_s=time.cpu_sequence_s,
            launch_s=time.launch_s,
            draft_step_s=time.draft_step_s,
            graph_sizes=list(time.graph_sizes),
        )

    @classmethod
    def read(cls, given: Any) -> StepTimes:
        """Raises ValueError, in one line."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, ('batch_time', *first['loc'])))}: {first['msg']}") from error

    def batch_time(self) -> BatchTime:
        return BatchTime(
            tuple(Piece(*values) for values in self.pieces),
            curve=tuple(self.curve),
            cpu_step_s=self.cpu_step_s,
            cpu_sequence_s=self.cpu_sequence_s,
            launch_s=self.launch_s,
            draft_step_s=self.draft_step_s,
            graph_sizes=tuple(self.graph_sizes),
        )

    @field_validator("pieces")
    @classmethod
    def _are_pieces(cls, given: list[list[float]]) -> list[list[float]]:
        most = len(fields(Piece))
        if not given or any(not 5 <= len(values) <= most for values in given):
            raise ValueError(f"a batch time has at least one piece, and a piece 5 to {most} coefficients")
        return given

    @model_validator(mode="after")
    def _is_a_batch_time(self) -> Self:
        self.batch_time()  # its error is a ValueError, which pydantic reports
        return self


class Options(_WithClasses):
    """Without a `batch_time` the plugin learns from nothing. `boards` is where the door looks (board.py); if the engine
    is `routed`, its state is there too.
    `think_end_token_id` ends a reasoning model's thoughts.
    """

    policy: str = "sloguard"
    policy_options: dict[str, bool | int | float | str] = {}
    planner_budget_ms: float = Field(default=20.0, gt=0)
    batch_time: StepTimes | None = None
    step_log: str | None = None
    boards: str | None = None
    routed: bool = False
    think_end_token_id: int | None = None

    @classmethod
    def read(cls, additional_config: Any) -> Options:
        """Raises SpecError, naming the field."""
        given = additional_config.get("sloguard", {}) if isinstance(additional_config, Mapping) else {}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _spec_error("sloguard", error, "Correct it in --additional-config.") from error

    @property
    def planner_budget_s(self) -> float:
        return self.planner_budget_ms / 1000

    def made_policy(self) -> Policy:
        """One of the table as it is, or the user's own under watch: an exception in vLLM's scheduler would end it."""
        policy = load(POLICIES, self.policy, "policy", "plan")(**self.policy_options)
        return policy if self.policy in POLICIES else Checked(policy, f"policy {self.policy}")

    def time(self) -> OnlineTime:
        return LearningTime() if self.batch_time is None else OnlineTime(self.batch_time.batch_time())


def _spec_error(root: str, error: ValidationError, fix: str) -> SpecError:
    first = error.errors()[0]
    return SpecError(".".join(map(str, (root, *first["loc"]))), first["input"], first["msg"], fix)
