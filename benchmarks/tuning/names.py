"""Lists of names on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from tabular import TABULAR
from tasks import TASKS

ALL = "all"


def names_among(table: Iterable[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in table]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}: choose among {', '.join(table)}")
        return names

    return read


def read_tasks(text: str) -> list[str]:
    every = [*TASKS, *TABULAR]
    return every if text == ALL else names_among(every)(text)
