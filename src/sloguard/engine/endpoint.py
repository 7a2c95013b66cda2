"""A server that already runs: measured as it stands, never started, stopped or configured."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from sloguard.crash import Evidence
from sloguard.engine.base import EngineSetup, Facts, Load, LoadPlan, OnPhase, Run, Timeouts, follow, ignore_phase
from sloguard.engine.http_probe import ask, served_models
from sloguard.engine.loading import WARMUP_REQUESTS, offer_load
from sloguard.errors import EngineCrash, SpecError
from sloguard.load.target import Target
from sloguard.request import End, Timeline
from sloguard.space.space import Space
from sloguard.trial import Config

QUESTION_TIMEOUT_S = 10.0
FIELD = "--base-url"


class EndpointEngine:
    """Any OpenAI-compatible server. The only config is `Config()`: what the server was started with."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        warmup: int = WARMUP_REQUESTS,
        timeouts: Timeouts | None = None,
    ) -> None:
        """Raises SpecError where the URL can't be used, nobody answers there, or the model isn't served."""
        self.target = Target(base_url, model, api_key=api_key)
        self.timeouts = timeouts or Timeouts()
        self._warmup = warmup
        self._check_model()
        self._version = self._ask_version()

    @classmethod
    def from_setup(cls, setup: EngineSetup) -> EndpointEngine:
        if setup.base_url is None:
            raise SpecError(FIELD, None, "the endpoint engine needs a running server", "Give its address.")
        if setup.policy is not None:
            fix = "Drop it, or use --engine vllm."
            raise SpecError("--policy", setup.policy.name, "a running server's scheduler can't be chosen", fix)
        if setup.python is not None:
            raise SpecError("--engine-python", setup.python, "a running server is not started", "Drop it.")
        if setup.gpu is not None:
            raise SpecError("--gpu", setup.gpu, "a running server's GPU can't be chosen", "Drop it.")
        if setup.tensor_parallel != 1:
            raise SpecError("--tensor-parallel", setup.tensor_parallel, "a running server is not started", "Drop it.")
        if setup.gpus is not None:
            raise SpecError("--gpus", setup.gpus, "a running server is not started", "Drop it.")
        if setup.fixed:
            name = next(iter(setup.fixed))
            raise SpecError(
                "--engine-arg", name, "a running server can't be configured", "Drop it, or use --engine vllm."
            )
        return cls(setup.base_url, setup.model, api_key=setup.api_key, timeouts=setup.timeouts)

    def default_config(self) -> Config:
        return Config()

    def command_for(self, config: Config) -> list[str]:
        return []

    def facts(self) -> Facts:
        """Of the machine behind it nothing is known but the version, where the server says it is vLLM's."""
        numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", self._version)
        version = (int(numbers[1]), int(numbers[2]), int(numbers[3])) if numbers else None
        return Facts(tunable=False, version=version, crashes_last=False)

    def check_space(self, space: Space) -> None:
        """Raises SpecError for any knob: a running server has none."""
        if space.names:
            fix = "Use --engine vllm to try configurations."
            raise SpecError("--space", space.names[0], "a running server can't be configured", fix)

    def describe(self) -> dict[str, str]:
        return {
            "engine": "endpoint",
            "base_url": self.target.base_url,
            "model": self.target.model,
            "version": self._version or "unknown",
        }

    def run(self, config: Config, plan: LoadPlan, trial_dir: Path, on_phase: OnPhase = ignore_phase) -> Run:
        """Offers the loads. Raises EngineCrash (phase load) where the server is gone after one."""
        if config:
            fix = "Use --engine vllm to try configurations."
            raise SpecError("config", dict(config), "a running server can't be configured", fix)
        began_s = time.monotonic()
        notes: list[str] = []

        def offered(load: Load) -> Sequence[Timeline]:
            offered = offer_load(self.target, load, warmup=self._warmup, timeouts=self.timeouts, on_phase=on_phase)
            errors = {t.error for t in offered.timelines if t.end is End.FAILED}
            if errors and not self._is_there():
                raise EngineCrash(Evidence("load", log_tail="\n".join(sorted(errors))), time.monotonic() - began_s)
            notes.extend(offered.notes)
            return offered.timelines

        served = follow(plan, offered)
        return Run(served, startup_s=0.0, cost_s=time.monotonic() - began_s, notes=tuple(dict.fromkeys(notes)))

    def _check_model(self) -> None:
        url, model = self.target.base_url, self.target.model
        try:
            names = served_models(url, timeout_s=QUESTION_TIMEOUT_S, api_key=self.target.api_key)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise SpecError(
                FIELD, url, f"nobody answers there ({reason})", "Start the server, or check the URL."
            ) from error
        if names and model not in names:
            raise SpecError("--model", model, f"{url} does not serve it", f"It serves {', '.join(names)}.")

    def _ask_version(self) -> str:
        """vLLM's `/version`; empty for a server that has none."""
        url, key = self.target.base_url, self.target.api_key
        try:
            body = ask(url, "/version", timeout_s=QUESTION_TIMEOUT_S, api_key=key).body
        except OSError:
            return ""
        return str(body.get("version", "")) if isinstance(body, dict) else ""

    def _is_there(self) -> bool:
        try:
            ask(self.target.base_url, "/v1/models", timeout_s=QUESTION_TIMEOUT_S, api_key=self.target.api_key)
        except OSError:
            return False
        return True
