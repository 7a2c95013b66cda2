"""What the emulator emulates: a model on a GPU under a policy, as one replica of the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sloguard.crash import Evidence, diagnose
from sloguard.engine.model_files import find_model_shape
from sloguard.engine.simulated import VLLM_VERSION, SimulatedEngine
from sloguard.errors import SpecError
from sloguard.perf.batch_time import Batch, BatchTime
from sloguard.perf.coefficients import coefficients_for
from sloguard.perf.gpus import Gpu, gpu_named
from sloguard.perf.model_shape import ModelShape
from sloguard.perf.online import OnlineTime
from sloguard.registry import load
from sloguard.rng import stream
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Quantile
from sloguard.sched.plan_check import make_checked
from sloguard.sched.policy import POLICIES, Policy, Speculation
from sloguard.sim.kernel import Kernel
from sloguard.sim.memory import Memory
from sloguard.sim.noise import jitter
from sloguard.sim.replica import OnDecline, OnTokens, Replica
from sloguard.sim.settings import Settings, read_settings
from sloguard.sim.start import start
from sloguard.trial import Value

MAX_MODEL_LEN = 8192  # where the user says nothing, as in simulations: a model's own is often more than its GPU holds
DRAFT_SHARE = 0.1  # a drafting step, of a decode step: 0.07 and 0.11 in SLOs-Serve's published coefficients


@dataclass(frozen=True, slots=True)
class Emulated:
    """`engine_args` are vLLM's, underscored: `max_num_seqs`, `max_model_len` and the like. Its own defaults on that GPU
    hold where they say nothing. `noise` is the relative spread of step times.
    """

    model: str
    gpu: str
    tp: int = 1
    policy: str = "sloguard"
    policy_options: Mapping[str, Value] = field(default_factory=dict)
    engine_args: Mapping[str, Value] = field(default_factory=dict)
    speculation: Speculation | None = None
    noise: float = 0.0
    seed: int = 0

    def replica(self, kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline | None = None) -> Replica:
        """Raises SpecError for a model, GPU, policy or argument there isn't, and for what vLLM would not start with."""
        policy = self._policy()
        model, gpu = self._shape(), gpu_named(self.gpu)
        fixed = {"max_model_len": min(model.max_position, MAX_MODEL_LEN), **self.engine_args}
        engine = SimulatedEngine(model, gpu, self.tp, self.seed, fixed=fixed, noise=self.noise)
        settings = read_settings(engine.default_config())
        if "max_num_seqs" not in self.engine_args:  # vLLM caps its own default too (EngineArgs, 0.32)
            settings = replace(settings, max_num_seqs=min(settings.max_num_seqs, settings.max_num_batched_tokens))
        memory = self._started(settings, model, gpu)
        kv = KvCache(memory.kv_blocks, settings.block_size, settings.enable_prefix_caching)
        if kv.capacity_tokens < settings.max_model_len:
            problem = f"{kv.capacity_tokens} KV tokens on {self.tp} x {gpu.name} can't hold one sequence of that length"
            raise SpecError("max_model_len", settings.max_model_len, problem, "Give less, or take a larger GPU.")
        time = self._with_drafts(engine.step_time(settings, self.tp))
        return Replica(
            kernel,
            policy,
            settings.limits(kv.blocks),
            kv,
            time,
            on_tokens,
            on_decline,
            predicted=OnlineTime(time) if self.noise else None,
            lengths=Quantile(),
            step_scale=jitter(stream(self.seed, "noise"), self.noise) if self.noise else None,
            speculation=self.speculation,
            drafts_rng=stream(self.seed, "drafts"),
            pace_from_first=True,
        )

    def describe(self) -> dict[str, str | int]:
        """For whoever asks the server what it is."""
        model, gpu = self._shape(), gpu_named(self.gpu)
        return {
            "emulates": f"vLLM {'.'.join(map(str, VLLM_VERSION))}",
            "model": model.name,
            "gpu": gpu.name,
            "tensor_parallel": self.tp,
            "policy": self.policy,
            "step_times": coefficients_for(model, gpu, self.tp).source,
        }

    def _shape(self) -> ModelShape:
        return find_model_shape(self.model)

    def _policy(self) -> Policy:
        """One of the table as it is, or the user's own under watch: it breaks with a line that says what it did."""
        own = self.policy not in POLICIES

        def make() -> Policy:
            kind = load(POLICIES, self.policy, "--policy", "plan")
            try:
                return kind(**self.policy_options)
            except (TypeError, ValueError) as error:
                problem = f"refuses its options: {str(error).rstrip('.')}"
                raise SpecError("--policy", self.policy, problem, "Correct them.") from error

        return make_checked(make, self.policy.partition(":")[0], f"--policy {self.policy}") if own else make()

    def _started(self, settings: Settings, model: ModelShape, gpu: Gpu) -> Memory:
        """What a start of vLLM does with the GPU's memory. Raises SpecError, in vLLM's words, where it would fail."""
        begun = start(settings, model, gpu, self.tp, stream(self.seed, "emulated start"))
        failure = begun.failure
        if failure is not None and failure.phase == "startup":  # what fails only under load is not emulated
            crash = diagnose(Evidence("startup", exit_code=1, log_tail="\n".join(failure.lines)))
            problem = f"on {self.tp} x {gpu.name} vLLM would not start: {crash.line.rstrip('.')}"
            raise SpecError("--model", self.model, problem, crash.hint)
        return begun.memory

    def _with_drafts(self, time: BatchTime) -> BatchTime:
        if self.speculation is None or time.draft_step_s:
            return time
        return replace(time, draft_step_s=DRAFT_SHARE * time.seconds(Batch(decodes=1, kv_tokens=1)))
