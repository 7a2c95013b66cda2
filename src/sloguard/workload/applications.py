"""What people use a model for: the stages of their requests, how long each is, and what each is promised.

The promises are those of SLOs-Serve (arXiv 2504.08784): the first token within a multiple of the time a prefill takes
on an idle engine, then a pace. A stage's prompt is only what is new in it; the conversation before is context.

A request is drawn as one row of probabilities, so that requests longer than a limit can be dropped and the next row
taken: what is left is the recorded distribution of the short ones, as where a benchmark drops long requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sloguard.errors import SpecError
from sloguard.request import Stage
from sloguard.slo import StageSLO
from sloguard.workload import figures
from sloguard.workload.lengths import Conditional, Marginal, Tokens

PAPER_TOTAL_TOKENS = 2048  # longer requests are dropped, as in SLOs-Serve; OPT has no longer context either
REASONING_TOTAL_TOKENS = 8192  # 2048 would leave a quarter of them, and those hardly think; 8192 leave 85 %
BLOCK = 4096  # requests drawn at once
FEWEST = 0.01  # a limit that leaves a smaller share is a mistake


class Turns(Protocol):
    """The stages that a request may have, drawn from `uniforms` probabilities in [0, 1)."""

    @property
    def kinds(self) -> tuple[str, ...]: ...

    @property
    def uniforms(self) -> int: ...

    def tokens(self, u: NDArray[np.float64]) -> Tokens:
        """[n, kinds, 2] new prompt tokens and output tokens at u [n, uniforms]; 0 where a request has no such stage."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and its answer."""

    lengths: Conditional

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("answer",)

    @property
    def uniforms(self) -> int:
        return 2

    def tokens(self, u: NDArray[np.float64]) -> Tokens:
        return self.lengths.pairs(u)[:, None, :]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """An output of which the last `response_share` is the response, and what comes before is thinking.

    The response goes on where the thinking ends: its prompt is the one token that ends the thinking.
    """

    lengths: Conditional
    response_share: float

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("thinking", "response")

    @property
    def uniforms(self) -> int:
        return 2

    def tokens(self, u: NDArray[np.float64]) -> Tokens:
        prompt, output = self.lengths.pairs(u).T
        response = np.maximum(1, np.rint(self.response_share * output).astype(np.int64))
        thinking = np.maximum(1, output - response)
        return np.stack([np.stack([prompt, thinking], axis=1), np.stack([np.ones_like(prompt), response], axis=1)], 1)


@dataclass(frozen=True, slots=True)
class ToolLoop:
    """Calls of tools, each followed by what the tool gave back, and a final answer.

    `loops[k]` is the share of requests with k calls; `result` the new tokens of a turn after a call.
    """

    prompt: Marginal
    loops: tuple[float, ...]
    result: Marginal
    call: Marginal
    answer: Marginal

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*["loop"] * (len(self.loops) - 1), "final")

    @property
    def uniforms(self) -> int:
        return 2 + 2 * len(self.loops)

    def tokens(self, u: NDArray[np.float64]) -> Tokens:
        stages = len(self.loops)
        loops = np.searchsorted(np.cumsum(self.loops)[:-1], u[:, 0], side="right")
        prompts = self.result.quantile(u[:, 2 : 2 + stages])
        outputs = self.call.quantile(u[:, 2 + stages :])
        outputs[:, -1] = self.answer.quantile(u[:, -1])
        first = np.where(loops > 0, 0, stages - 1)
        prompts[np.arange(len(u)), first] = self.prompt.quantile(u[:, 1])
        tokens = np.stack([prompts, outputs], axis=2)
        tokens[:, :-1][np.arange(stages - 1) >= loops[:, None]] = 0
        return tokens


@dataclass(frozen=True, slots=True)
class Application:
    """`slos` by the kind of stage. Requests of more than `max_total_tokens`, all stages together, are dropped."""

    name: str
    turns: Turns
    slos: Mapping[str, StageSLO]
    max_total_tokens: int = PAPER_TOTAL_TOKENS

    @property
    def first_slo(self) -> StageSLO:
        return self.slos[self.turns.kinds[0]]

    @property
    def promised(self) -> str:
        """In words; of one kind of stage after the other, where they differ."""
        return f"{self.name}: {', then '.join(dict.fromkeys(slo.text for slo in self.slos.values()))}"

    def draw(self, rng: np.random.Generator, n: int, max_total_tokens: int | None = None) -> list[tuple[Stage, ...]]:
        """[n] requests of at most the application's own limit and, where given, `max_total_tokens`. A longer run
        begins with the shorter one.

        Raises SpecError where hardly any request is that short.
        """
        limit = min(self.max_total_tokens, max_total_tokens or self.max_total_tokens)
        kinds = self.turns.kinds
        found: list[tuple[Stage, ...]] = []
        drawn = 0
        while len(found) < n:
            tokens = self.turns.tokens(rng.random((BLOCK, self.turns.uniforms)))
            drawn += BLOCK
            fitting: list[list[list[int]]] = tokens[tokens.sum(axis=(1, 2)) <= limit].tolist()
            found += [
                tuple(Stage(p, o, self.slos[kind], kind) for (p, o), kind in zip(row, kinds, strict=True) if p)
                for row in fitting[: n - len(found)]
            ]
            if len(found) < min(n, FEWEST * drawn):
                problem = f"{len(found)} of {drawn} {self.name} requests are that short"
                raise SpecError("--max-model-len", limit, problem, "Give more, or serve a model with a longer context.")
        return found

    def relaxed(self, factor: float) -> Application:
        """The same with every TPOT, and a first token that is due within one, `factor` times as long."""
        return replace(self, slos={kind: _relaxed(slo, factor) for kind, slo in self.slos.items()})


def _relaxed(slo: StageSLO, factor: float) -> StageSLO:
    return replace(slo, ttft_s=slo.ttft_s and slo.ttft_s * factor, tpot_s=slo.tpot_s and slo.tpot_s * factor)


APPLICATIONS = (
    Application("chatbot", Answer(figures.CHATBOT), {"answer": StageSLO(ttft_slowdown=5, tpot_s=0.1)}),
    Application("coder", Answer(figures.CODER), {"answer": StageSLO(ttft_slowdown=5, tpot_s=0.05)}),
    Application("summarizer", Answer(figures.SUMMARIZER), {"answer": StageSLO(ttft_slowdown=3, tpot_s=0.1)}),
    Application(
        "tool-calling",
        ToolLoop(
            prompt=figures.TOOL_PROMPT,
            loops=figures.TOOL_LOOPS,
            result=figures.TOOL_RESULT,
            call=figures.TOOL_CALL,
            answer=figures.TOOL_ANSWER,
        ),
        {"loop": StageSLO(ttft_slowdown=3, tpot_s=0.05), "final": StageSLO(ttft_slowdown=3, tpot_s=0.1)},
    ),
    Application(
        "reasoning",
        # The data don't say where the thinking ends; a fifth is an assumption.
        Reasoning(figures.REASONING, response_share=0.2),
        # The response has no prefill to be slow at: its first token is due one TPOT after the thinking.
        {"thinking": StageSLO(ttft_slowdown=3, tpot_s=0.05), "response": StageSLO(ttft_s=0.1, tpot_s=0.1)},
        max_total_tokens=REASONING_TOTAL_TOKENS,
    ),
)
