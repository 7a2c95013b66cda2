"""What the readers of result files share: checked numbers, and the one line that says what is wrong with a file."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, ValidationError

from sloguard.errors import SpecError

# The bounds are far beyond any run: they keep arithmetic finite.
Count = Annotated[int, Field(ge=0, le=10**12)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Milliseconds = Annotated[float, Field(ge=0, le=1e12)]
Instant = Annotated[float, Field(ge=-1e12, le=1e12)]  # seconds, of whatever clock
Rate = Annotated[float, Field(ge=0, le=1e12)]  # a second
PositiveOrInf = Annotated[float, AllowInfNan(True), Field(gt=0)]


class Outside(BaseModel):
    """A record of another tool: names unknown are ignored, types are not bent."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


Record = TypeVar("Record", bound=Outside)


def checked(kind: type[Record], value: Any, path: str, what: str, at: str = "") -> Record:
    """`value` as a `kind`, which stands at `at`. Raises SpecError naming the file and the first field that is missing
    or wrong.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in (*([at] if at else []), *first["loc"])) or "it"
        if first["type"] == "missing":
            raise unreadable(path, f"is no {what} file that can be read: {where} is missing") from error
        got = reprlib.repr(first["input"])
        raise unreadable(path, f"is no {what} file that can be read: {where} = {got}: {first['msg']}") from error


def unreadable(path: str, problem: str) -> SpecError:
    fix = "Give a result file as its tool wrote it; docs/interop.md says which are read."
    return SpecError("result file", path, " ".join(problem.split()), fix)


def due_column(values: Sequence[float | None]) -> NDArray[np.float64]:
    """[n] instants due; nan throughout where one is None, for latencies of one run count from one kind of instant."""
    return column(values if None not in values else [None] * len(values))


def column(values: Sequence[float | None]) -> NDArray[np.float64]:
    """[n] nan where None."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
