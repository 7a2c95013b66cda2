"""How long one engine step takes.

Notation, for a batch of prefill chunks i and decode requests:

    n_i, c_i   tokens of chunk i, and tokens of its request already in the KV cache
    P          sum of n_i: prefill tokens
    D          decode requests, one token each
    K          KV tokens that the decodes read
    A          sum of n_i*(c_i + n_i/2): query-key pairs of causal prefill attention
    S          sequences in the batch (chunks + D)
    V, v       drafted tokens that the decodes verify, and sequential steps of drafting (the longest draft)
    G          CUDA-graph padding: tokens added to reach the next captured size

    gpu_s  = max over pieces of (c0 + a*(P + V + G) + d*D + k*K + q*A) + s*v
    step_s = max(gpu_s, launch_s) + cpu_step_s + cpu_sequence_s*S

Two pieces are enough: one where reading the weights dominates, one where arithmetic does. The form is the one of
SLOs-Serve (arXiv 2504.08784, max over pieces of a linear function), with the KV and attention terms added.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Protocol

MAX_TOKENS = 1 << 20  # no engine batches more


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes. `chunks` holds (tokens, context tokens) of each prefill chunk."""

    chunks: tuple[tuple[int, int], ...] = ()
    decodes: int = 0
    kv_tokens: int = 0
    draft_tokens: int = 0
    draft_steps: int = 0

    @property
    def prefill_tokens(self) -> int:
        return sum(n for n, _ in self.chunks)

    @property
    def attention_pairs(self) -> float:
        return sum(n * (c + n / 2) for n, c in self.chunks)


class StepTime(Protocol):
    """A prediction of step times."""

    def seconds(self, batch: Batch) -> float: ...

    def inverse(
        self,
        budget_s: float,
        *,
        decodes: int = 0,
        kv_tokens: int = 0,
        context_tokens: int = 0,
        draft_tokens: int = 0,
        draft_steps: int = 0,
    ) -> int:
        """The most prefill tokens, in one chunk after `context_tokens`, that a step of `budget_s` holds beside these
        decodes and drafts. 0 where the decodes alone take longer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """One linear function of a batch, in seconds per unit."""

    base_s: float
    prefill_token_s: float
    decode_s: float
    kv_token_s: float
    attention_pair_s: float

    def seconds(self, prefill_tokens: int, decodes: int, kv_tokens: int, attention_pairs: float) -> float:
        return (
            self.base_s
            + self.prefill_token_s * prefill_tokens
            + self.decode_s * decodes
            + self.kv_token_s * kv_tokens
            + self.attention_pair_s * attention_pairs
        )


@dataclass(frozen=True, slots=True)
class BatchTime:
    """Seconds of a step on one replica (one GPU, or one tensor-parallel group).

    `graph_sizes` are the batch sizes that were captured as CUDA graphs, ascending; batches up to the largest are
    padded to the next. `launch_s` is the time the CPU needs to launch the kernels of a step that is not a graph:
    the GPU waits for it.
    """

    pieces: tuple[Piece, ...]
    cpu_step_s: float = 0.0
    cpu_sequence_s: float = 0.0
    launch_s: float = 0.0
    draft_step_s: float = 0.0
    graph_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("a batch time needs at least one piece")

    def seconds(self, batch: Batch) -> float:
        prefill = batch.prefill_tokens
        pairs = batch.attention_pairs
        padded = prefill + batch.draft_tokens
        padded += self._padding_tokens(padded + batch.decodes)
        gpu_s = max(piece.seconds(padded, batch.decodes, batch.kv_tokens, pairs) for piece in self.pieces)
        gpu_s += self.draft_step_s * batch.draft_steps
        sequences = len(batch.chunks) + batch.decodes
        return max(gpu_s, self.launch_s) + self.cpu_step_s + self.cpu_sequence_s * sequences

    def inverse(
        self,
        budget_s: float,
        *,
        decodes: int = 0,
        kv_tokens: int = 0,
        context_tokens: int = 0,
        draft_tokens: int = 0,
        draft_steps: int = 0,
    ) -> int:
        def seconds(tokens: int) -> float:
            chunks = ((tokens, context_tokens),) if tokens else ()
            return self.seconds(Batch(chunks, decodes, kv_tokens, draft_tokens, draft_steps))

        high = 1
        while seconds(high) <= budget_s and high < MAX_TOKENS:
            high *= 2
        return bisect_right(range(high + 1), budget_s, lo=1, key=seconds) - 1

    def _padding_tokens(self, tokens: int) -> int:
        at = bisect_left(self.graph_sizes, tokens)
        return self.graph_sizes[at] - tokens if at < len(self.graph_sizes) else 0
