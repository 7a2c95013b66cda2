"""Known rules between knobs, and the smallest change that makes a config keep them.

A rule says when it is broken and which moves mend it, the preferred one first. Moves only go one way (token budget up;
sequences, lengths and thresholds down; features towards what always works), so repair ends, and repairing twice changes
nothing more. A move that would leave the space is not made; then `refusal` gives the reason not to try the config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sloguard.perf.gpus import GpuFacts
from sloguard.perf.model_shape import ModelShape
from sloguard.space.flags import count_of
from sloguard.space.knobs import Categorical, Float
from sloguard.space.layout import LAYOUT, Layout, layout_of
from sloguard.space.memory import Fit, fits, max_sequences
from sloguard.space.space import Space
from sloguard.space.vllm import Version, vllm_defaults
from sloguard.trial import Config, Value

PAPER_MARGIN = 0.7  # of the room for KV: arXiv 2604.17627 plans with 30 % to spare

# Least compute capability of a quantization method: get_min_capability in model_executor/layers/quantization, 0.32.0.
_CAPABILITY = {
    "gptq": (6, 0),
    "moe_wna16": (7, 0),
    "bitsandbytes": (7, 0),
    "awq": (7, 5),
    "fp8": (7, 5),
    "torchao": (7, 5),
    "experts_int8": (8, 0),
    "fbgemm_fp8": (8, 0),
    "mxfp4": (8, 0),
    "fp_quant": (10, 0),
}


@dataclass(frozen=True, slots=True)
class RepairContext:
    """Where the config will run. A rule that asks for what is None (unknown) does not apply.

    `fixed` are the arguments pinned by the user, `expected_tokens` the workload's mean prompt plus output [tokens],
    `paper` whether the paper's own margin is kept (space `paper8`).
    """

    version: Version | None = None
    model: ModelShape | None = None
    gpu: GpuFacts | None = None
    tp: int = 1
    fixed: Config = field(default_factory=Config)
    expected_tokens: int | None = None
    paper: bool = False


@dataclass(frozen=True, slots=True)
class Repaired:
    """`notes` has one line a change: knob, old and new value, why."""

    config: Config
    notes: tuple[str, ...] = ()


Move = tuple[str, Value]


@dataclass(frozen=True, slots=True)
class _Case:
    """A config seen as the engine will see it."""

    config: Config
    space: Space
    context: RepairContext

    def value(self, name: str) -> Value:
        for source in (self.config, self.context.fixed, vllm_defaults(self.context.version, self.context.gpu)):
            if source.get(name) is not None:
                return source[name]
        return None

    def count(self, name: str) -> int | None:
        return count_of(self.value(name))

    @property
    def max_len(self) -> int | None:
        stated = self.count("max_model_len")
        return stated if stated is not None or self.context.model is None else self.context.model.max_position

    @property
    def layout(self) -> Layout:
        return layout_of(self.config, self.context.tp)

    @property
    def fit(self) -> Fit | None:
        model, gpu = self.context.model, self.context.gpu
        if model is None or gpu is None:
            return None
        return fits(self.config, model, gpu, self.context.tp, fixed=self.context.fixed, version=self.context.version)

    def at_least(self, name: str, bound: int) -> Iterator[Move]:
        """The smallest value of the knob from `bound` up, if there is one."""
        yield from self._nearest(name, bound, up=True)

    def at_most(self, name: str, bound: int) -> Iterator[Move]:
        """The largest value of the knob up to `bound`, if there is one."""
        yield from self._nearest(name, bound, up=False)

    def _nearest(self, name: str, bound: int, *, up: bool) -> Iterator[Move]:
        if name not in self.config or name not in self.space.names:
            return
        knob = self.space.knob(name)
        if not isinstance(knob, Categorical):
            value = max(bound, knob.low) if up else min(bound, knob.high)
            yield name, float(value) if isinstance(knob, Float) else int(value)
            return
        numbers = [c for c in knob.choices if isinstance(c, int | float) and (c >= bound if up else c <= bound)]
        if numbers:
            yield name, min(numbers) if up else max(numbers)


@dataclass(frozen=True, slots=True)
class Rule:
    """`moves` yields what would mend a broken rule, best first. Holds for vLLM versions in [since, until).

    vLLM refuses to start where a rule that is `required` is broken; the others are advice that repair follows.
    """

    reason: str
    broken: Callable[[_Case], bool]
    moves: Callable[[_Case], Iterator[Move]]
    since: Version = (0, 0, 0)
    until: Version | None = None
    required: bool = True

    def holds_for(self, version: Version | None) -> bool:
        return version is None or (version >= self.since and (self.until is None or version < self.until))


def _exceeds(case: _Case, name: str, limit: int | None) -> bool:
    value = case.count(name)
    return value is not None and limit is not None and value > limit


def _raise_tokens_or_lower_seqs(case: _Case) -> Iterator[Move]:
    yield from case.at_least("max_num_batched_tokens", case.count("max_num_seqs") or 0)
    yield from case.at_most("max_num_seqs", case.count("max_num_batched_tokens") or 0)


def _whole_prompts_too_long(case: _Case) -> bool:
    tokens = case.count("max_num_batched_tokens")
    return case.value("enable_chunked_prefill") is False and tokens is not None and (case.max_len or 0) > tokens


def _make_room_for_prompts(case: _Case) -> Iterator[Move]:
    """Shortening what users may send comes last."""
    yield from case.at_least("max_num_batched_tokens", case.max_len or 0)
    yield "enable_chunked_prefill", True
    yield from case.at_most("max_model_len", case.count("max_num_batched_tokens") or 0)


def _position_limit(case: _Case) -> int | None:
    return case.context.model.max_position if case.context.model else None


def _quantised_kv_unsupported(case: _Case) -> bool:
    capability = case.context.gpu.compute_capability if case.context.gpu else None
    return str(case.value("kv_cache_dtype")).startswith("fp8") and capability is not None and capability < (8, 0)


def _method_unsupported(method: Value, gpu: GpuFacts | None) -> bool:
    capability = gpu.compute_capability if gpu else None
    return capability is not None and capability < _CAPABILITY.get(str(method), (0, 0))


def _supported_methods(case: _Case) -> Iterator[Move]:
    if "quantization" in case.space.names:
        methods = case.space.knob("quantization").values()
        yield from (("quantization", m) for m in methods if not _method_unsupported(m, case.context.gpu))


def _planned_seqs(case: _Case) -> int | None:
    """Sequences of the expected length that fit within the paper's margin."""
    model, tokens, fit = case.context.model, case.context.expected_tokens, case.fit
    if not case.context.paper or model is None or tokens is None or fit is None:
        return None
    return max_sequences(fit, case.config, model, tokens, case.layout, PAPER_MARGIN)


def _planned_length(case: _Case) -> int | None:
    """The longest sequence that fits within the paper's margin."""
    model, fit = case.context.model, case.fit
    if not case.context.paper or model is None or fit is None:
        return None
    return max_sequences(fit, case.config, model, 1, case.layout, PAPER_MARGIN)


def _looks_up_asynchronously(case: _Case) -> bool:
    """Asked to: where nothing is asked, vLLM chooses what works."""
    asked = case.config.get("async_scheduling", case.context.fixed.get("async_scheduling"))
    return asked is True and str(case.value("speculative")).startswith("ngram")


def _too_little_memory(case: _Case) -> bool:
    return case.fit is not None and not case.fit.ok


def _wider_layouts(case: _Case) -> Iterator[Move]:
    """Those first that split the model over the fewest GPUs."""
    if LAYOUT in case.space.names:
        split = {value: Layout.named(value) for value in case.space.knob(LAYOUT).values()}
        yield from ((LAYOUT, value) for value in sorted(split, key=lambda value: split[value].tp * split[value].pp))


RULES: tuple[Rule, ...] = (
    Rule(
        "the model takes no longer sequences",
        lambda case: _exceeds(case, "max_model_len", _position_limit(case)),
        lambda case: case.at_most("max_model_len", _position_limit(case) or 0),
    ),
    Rule(
        "the paper keeps 30 % of the KV memory free of one sequence of full length",
        lambda case: _exceeds(case, "max_model_len", _planned_length(case)),
        lambda case: case.at_most("max_model_len", _planned_length(case) or 0),
        required=False,
    ),
    Rule(
        "without chunked prefill a whole prompt has to fit in one step: max_num_batched_tokens >= max_model_len",
        _whole_prompts_too_long,
        _make_room_for_prompts,
    ),
    Rule(
        "a step gives every sequence a token: max_num_batched_tokens >= max_num_seqs",
        lambda case: _exceeds(case, "max_num_seqs", case.count("max_num_batched_tokens")),
        _raise_tokens_or_lower_seqs,
    ),
    Rule(
        "the paper keeps 30 % of the KV memory free of max_num_seqs requests of expected length",
        lambda case: _exceeds(case, "max_num_seqs", _planned_seqs(case)),
        lambda case: case.at_most("max_num_seqs", _planned_seqs(case) or 0),
        required=False,
    ),
    Rule(
        "no more sequences can be active than max_num_seqs",
        lambda case: _exceeds(case, "max_num_active_seqs", case.count("max_num_seqs")),
        lambda case: case.at_most("max_num_active_seqs", case.count("max_num_seqs") or 0),
    ),
    Rule(
        "vLLM refuses a threshold above max_model_len",
        lambda case: _exceeds(case, "long_prefill_token_threshold", case.max_len),
        lambda case: case.at_most("long_prefill_token_threshold", case.max_len or 0),
    ),
    # 8.0 to 8.8 can serve it through FlashInfer alone; below 8.0 no attention backend takes it (v1/attention/backends).
    Rule(
        "an fp8 KV cache needs compute capability 8.0",
        _quantised_kv_unsupported,
        lambda _: iter((("kv_cache_dtype", "auto"),)),
    ),
    Rule(
        "this GPU is too old for the quantization method",
        lambda case: _method_unsupported(case.value("quantization"), case.context.gpu),
        _supported_methods,
    ),
    Rule(
        "n-gram look-up is not there with async scheduling",
        _looks_up_asynchronously,
        lambda _: iter((("async_scheduling", False), ("speculative", "off"))),
    ),
    # Not required: where no layout has room, the guard says what is needed.
    Rule("each GPU has to hold its share of the model", _too_little_memory, _wider_layouts, required=False),
)


def repair(config: Config, space: Space, context: RepairContext) -> Repaired:
    """The nearest config that keeps every rule that can be kept inside `space`. Deterministic and idempotent.

    A config of the space stays in it. Knobs that the config leaves to the engine stay so.
    """
    notes: list[str] = []
    rules = [rule for rule in RULES if rule.holds_for(context.version)]
    while (change := _first_change(config, space, context, rules)) is not None:
        config, note = change
        notes.append(note)
    return Repaired(config, tuple(notes))


def refusal(config: Config, space: Space, context: RepairContext) -> str | None:
    """Why a (repaired) config can't start: a rule that is still broken, or too little memory; None where it may."""
    case = _Case(config, space, context)
    for rule in RULES:
        if rule.required and rule.holds_for(context.version) and rule.broken(case):
            return rule.reason
    return case.fit.reason if case.fit else None


def _first_change(config: Config, space: Space, context: RepairContext, rules: list[Rule]) -> tuple[Config, str] | None:
    case = _Case(config, space, context)
    for rule in rules:
        if not rule.broken(case):
            continue
        for name, value in rule.moves(case):
            moved = _moved(config, space, name, value)
            if moved is not None and not rule.broken(_Case(moved, space, context)):
                return moved, f"{name}: {config[name]} -> {value} ({rule.reason})"
    return None


def _moved(config: Config, space: Space, name: str, value: Value) -> Config | None:
    """`config` with the knob moved, or None where it has no such knob or would leave the space."""
    if name not in config or name not in space.names or not space.knob(name).legal(value):
        return None
    moved = config.replace(**{name: value})
    if space.contains(config):
        moved = space.activate(moved)
        return moved if space.contains(moved) else None
    return moved
