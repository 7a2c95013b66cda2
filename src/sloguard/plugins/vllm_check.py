"""Whether an engine has what sloguard's scheduler needs of vLLM, asked when it starts."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from sloguard.errors import SloguardError

OVERRIDDEN = {"add_request", "schedule", "update_from_output", "_reserve_prefill_lookahead", "_free_request"}
HOOKS = {  # what must be there, and by which of its names in the versions that have it
    "schedule": ("schedule",),
    "caps": ("_reserve_prefill_lookahead",),
    "promote": ("_handle_blocked_waiting_request", "_try_promote_blocked_waiting_request"),
    "preempt": ("_preempt_request",),
    "free": ("_free_request",),
}


def check_engine(engine: Any, ours: type, theirs: type, version: str) -> None:
    """`engine` is of the class `ours`, made over `theirs` of vLLM `version`. Raises SloguardError for what is missing
    there, for what `ours` would hide of it, and for settings that it can't serve by.
    """
    missing = [what for what, names in HOOKS.items() if not any(hasattr(engine, name) for name in names)]
    if missing:
        needs = ", ".join("/".join(HOOKS[what]) for what in missing)
        raise SloguardError(f"vLLM {version} has no {needs}. sloguard's scheduler needs vLLM 0.28 or newer.")
    added = {name for name, it in vars(ours).items() if isinstance(it, FunctionType) and name[:2] != "__"}
    shadowed = [name for name in sorted(added - OVERRIDDEN) if hasattr(theirs, name)]
    if shadowed:
        raise SloguardError(f"vLLM {version} has its own {', '.join(shadowed)}, which sloguard's scheduler would hide.")
    if engine.connector is not None or engine.ec_connector is not None:
        raise SloguardError(
            "KV and encoder-cache connectors (kv_transfer_config, kv_offloading_size, ec_transfer_config) hold "
            "requests back by rules of their own. Leave them out with sloguard's scheduler."
        )
    if engine.scheduler_config.policy != "fcfs":
        raise SloguardError(
            f"--scheduling-policy {engine.scheduler_config.policy} orders requests itself. "
            "Leave it out with sloguard's scheduler; its policy vllm-priority does the same."
        )
