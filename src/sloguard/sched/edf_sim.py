"""Admission by simulating earliest deadline first, with the batches of SLOs-Serve.

The later work of its authors replaced the exact choice by this: with jobs in order of deadline, each is promised if the
prompts promised so far and its own all finish in time in the capacity that lies ahead (PB*).
"""

from __future__ import annotations

from sloguard.sched.slos_serve import SlosServe


class EdfSim(SlosServe):
    def __init__(self, *, speculation: bool = True, fixed_batch: int | None = None, best_effort: bool = True) -> None:
        super().__init__(speculation=speculation, fixed_batch=fixed_batch, best_effort=best_effort, admission="edf")
