"""What a process knows of where the replicas are. A module of its own: Ray sends a router's class to other processes
with its module's globals copied, so what they share must lie elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerAt:
    name: str
    url: str
    token: str


servers: list[ServerAt] = []
