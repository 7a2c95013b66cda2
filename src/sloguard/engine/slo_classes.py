"""The operator's named classes of promises, from a TOML file:

default = "chat"            # of a request that names no class and no promise; without it such are best effort

[classes.chat]
ttft_ms = 500
tpot_ms = 50

[classes.batch]             # promises nothing: best effort
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sloguard.errors import SpecError
from sloguard.plugins.options import Promise
from sloguard.sched.asked import CUSTOM
from sloguard.slo import BEST_EFFORT

FIELD = "--slo-classes"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it is a label of metrics, and stands in headers


class SloClasses(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str | None = None
    classes: dict[str, Promise] = {}


def read_slo_classes(path: Path) -> SloClasses:
    """Raises SpecError, naming what is wrong in the file."""
    try:
        found = SloClasses.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SpecError(FIELD, str(path), f"can't be read ({error.strerror})", "Give a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(FIELD, str(path), f"is no TOML ({error})", "Mend it.") from error
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the file"
        fix = "Write [classes.NAME] with ttft_ms and tpot_ms, and default = NAME."
        raise SpecError(FIELD, str(path), f"{at} = {first['input']!r}: {first['msg']}", fix) from error
    for name in found.classes:
        if not NAME.fullmatch(name) or name in (BEST_EFFORT, CUSTOM):
            fix = f"Use up to 64 letters, digits, '.', '_' and '-', and neither {BEST_EFFORT} nor {CUSTOM}."
            raise SpecError(FIELD, str(path), f"classes.{name}: the name can't be used", fix)
    if found.default is not None and found.default not in (*found.classes, BEST_EFFORT):
        known = ", ".join(sorted(found.classes)) or "none"
        raise SpecError(FIELD, str(path), f"default = {found.default!r}: no such class", f"There are: {known}.")
    return found


def to_toml(classes: SloClasses) -> str:
    """What `read_slo_classes` reads as `classes`."""
    lines = [] if classes.default is None else [f'default = "{classes.default}"']
    for name, promise in classes.classes.items():
        limits = promise.model_dump(exclude_none=True)
        lines += ["", f'[classes."{name}"]', *(f"{limit} = {value!r}" for limit, value in limits.items())]
    return "\n".join(lines) + "\n"
