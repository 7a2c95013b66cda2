"""Several studies from one file: ways to tune, each from several seeds.

    out = "studies"            # where they go, beside the file; one directory each, NAME-SEED
    seeds = 5                  # 0 to 4; or a list of them

    [tune]                     # options of `sloguard tune`, by their names
    model = "meta-llama/Llama-3.1-8B"
    slo-ttft = 400

    [arms.random]              # a way to tune: what it has otherwise
    optimizer = "random"

    [arms.guided]
    optimizer = "guided"

A list gives an option several times; false is a switch's `--no-` form, or its absence. No study is told what failed in
another (`--retry-failures`): they are to be compared.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sloguard.errors import SpecError

Option = bool | int | float | str
ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
ALONE = ("--retry-failures",)
TAKEN = ("out", "resume", "json", "seed", "retry-failures")  # options of `tune` that the file has its own words for
SWITCHES = {"default": "--no-default", "race": "--no-race", "allow-lossy": None}  # and how they are turned off


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    out: str = Field(min_length=1)
    seeds: int | list[int]
    tune: dict[str, Option | list[Option]] = Field(default_factory=dict)
    arms: dict[str, dict[str, Option | list[Option]]] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Planned:
    """One study: `words` are its options of `sloguard tune`, less where it goes."""

    arm: str
    seed: int
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Series:
    """`directory` holds a directory for each of `studies`, which come seed by seed."""

    directory: Path
    studies: tuple[Planned, ...]


def read_series(path: Path) -> Series:
    """Raises SpecError, naming the file and the field, for a file that can't be read or says what can't be meant."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError("FILE", str(path), f"can't be read ({error.strerror})", "Name a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError("FILE", str(path), f"is not TOML ({error})", "Mend that line.") from error
    try:
        read = _File.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        problem, fix = first["msg"].lower(), "See docs/comparing.md for what such a file holds."
        if first["type"] == "extra_forbidden":
            problem, fix = "is nothing that such a file has", f"It has {', '.join(_File.model_fields)}."
        raise SpecError(f"{path}: {_where(told, first['loc'])}", first["input"], problem, fix) from error
    seeds = list(range(read.seeds)) if isinstance(read.seeds, int) else read.seeds
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        fix = "Give how many, such as 5, or different ones, such as [1, 2, 3]."
        raise SpecError(f"{path}: seeds", read.seeds, "not a number of seeds, nor seeds", fix)
    for arm in read.arms:
        if not ARM.fullmatch(arm):
            raise SpecError(f"{path}: arms", arm, "can't name a directory", "Use letters, digits and . _ + -.")
    options = {arm: {**read.tune, **own} for arm, own in read.arms.items()}
    for name, given in (pair for own in options.values() for pair in own.items()):
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, bool) and name not in (*SWITCHES, *TAKEN):
                fix = "Give its value, or leave it out."
                raise SpecError(f"{path}: {name}", str(value).lower(), "is no switch", fix)
    for name in TAKEN:
        if any(name in own for own in options.values()):
            raise SpecError(f"{path}: tune", name, "is not an option here", "The file sets out and seeds by itself.")
    studies = (
        Planned(arm, seed, (*_words(own), *ALONE, "--seed", str(seed)))
        for seed in seeds
        for arm, own in options.items()
    )
    return Series(path.parent / read.out, tuple(studies))


def _where(told: Any, location: Sequence[int | str]) -> str:
    """The part of `location` that is the file's; the rest names the types that pydantic tried."""
    keys: list[str] = []
    for part in location:
        if keys and not (isinstance(told, dict) and part in told):
            break
        keys.append(str(part))
        told = told.get(part) if isinstance(told, dict) else None
    return ".".join(keys)


def options_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Values by option; none for one that stands alone."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            found.setdefault(name, [])
        else:
            found[name].append(word)
    return found


def _words(options: Mapping[str, Option | list[Option]]) -> Iterator[str]:
    for name, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            if value is True:
                yield f"--{name}"
            elif value is False:
                yield from filter(None, [SWITCHES[name]])
            else:
                yield from (f"--{name}", str(value))
