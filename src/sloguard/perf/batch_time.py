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
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MAX_TOKENS = 1 << 20  # no engine batches more
FEW_STEPS = 8  # up to here a loop is faster than numpy


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
    _rows: tuple[tuple[float, float, float, float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("a batch time needs at least one piece")
        # Plain tuples unpack several times faster than attributes are read, and `seconds` is asked in hot loops.
        rows = ((p.base_s, p.prefill_token_s, p.decode_s, p.kv_token_s, p.attention_pair_s) for p in self.pieces)
        object.__setattr__(self, "_rows", tuple(rows))

    def seconds(self, batch: Batch) -> float:
        prefill, pairs = 0, 0.0
        for tokens, context in batch.chunks:
            prefill += tokens
            pairs += tokens * (context + tokens / 2)
        decodes = batch.decodes
        return self._seconds(
            prefill + batch.draft_tokens,
            pairs,
            decodes,
            batch.kv_tokens,
            self.draft_step_s * batch.draft_steps,
            len(batch.chunks) + decodes,
        )

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
        draft_s = self.draft_step_s * draft_steps

        def seconds(tokens: int) -> float:
            pairs = tokens * (context_tokens + tokens / 2)
            sequences = decodes + (tokens > 0)
            return self._seconds(tokens + draft_tokens, pairs, decodes, kv_tokens, draft_s, sequences)

        gpu_s = budget_s - self.cpu_step_s - self.cpu_sequence_s * (decodes + 1)
        tokens = 0
        if self.launch_s <= gpu_s:
            tokens = self._most_tokens(gpu_s - draft_s, decodes, kv_tokens, context_tokens, draft_tokens)
        fits = not tokens or seconds(tokens) <= budget_s
        if fits and (tokens == MAX_TOKENS or seconds(tokens + 1) > budget_s):
            return tokens
        # Rounding put the root on the wrong side of a token.
        return bisect_right(range(MAX_TOKENS + 1), budget_s, lo=1, key=seconds) - 1

    def decode_run_s(self, decodes: int, kv_tokens: int, steps: int) -> NDArray[np.float64]:
        """[steps] seconds of successive steps in which each of `decodes` requests decodes one token; the first reads
        `kv_tokens`, each one after it `decodes` more. Equal, to the bit, to asking `seconds` for every step.
        """
        if steps <= FEW_STEPS:
            run = range(kv_tokens, kv_tokens + steps * decodes, decodes) if decodes else [kv_tokens] * steps
            return np.array([self._seconds(0, 0.0, decodes, kv, 0.0, decodes) for kv in run])
        padding = self._padding_tokens(decodes)
        kv = kv_tokens + decodes * np.arange(steps)
        gpu_s = np.full(steps, self.launch_s, dtype=np.float64)
        for base_s, token_s, decode_s, kv_token_s, _ in self._rows:
            np.maximum(gpu_s, base_s + token_s * padding + decode_s * decodes + kv_token_s * kv, out=gpu_s)
        return gpu_s + self.cpu_step_s + self.cpu_sequence_s * decodes

    def _seconds(
        self, tokens: int, pairs: float, decodes: int, kv_tokens: int, draft_s: float, sequences: int
    ) -> float:
        """`tokens` are those of chunks and drafts together."""
        total = tokens + decodes
        sizes = self.graph_sizes
        if sizes and total <= sizes[-1]:
            tokens += sizes[bisect_left(sizes, total)] - total
        gpu_s = -inf
        for base_s, token_s, decode_s, kv_token_s, pair_s in self._rows:
            piece_s = base_s + token_s * tokens + decode_s * decodes + kv_token_s * kv_tokens + pair_s * pairs
            if piece_s > gpu_s:
                gpu_s = piece_s
        gpu_s += draft_s
        return (gpu_s if gpu_s > self.launch_s else self.launch_s) + self.cpu_step_s + self.cpu_sequence_s * sequences

    def _most_tokens(self, gpu_s: float, decodes: int, kv_tokens: int, context_tokens: int, draft_tokens: int) -> int:
        """The root of `_seconds` in the tokens of one chunk, up to rounding.

        Each piece is room >= a*n + q*(n*c + n^2/2). A chunk that overruns the last graph is not padded. Below it the
        root lies in some graph's range: either the padding to that graph fits too, or the largest chunk is the one
        that fills the graph before.
        """
        others = draft_tokens + decodes
        rows = [
            (gpu_s - base_s - decode_s * decodes - kv_token_s * kv_tokens, token_s, pair_s)
            for base_s, token_s, decode_s, kv_token_s, pair_s in self._rows
        ]
        tokens = min(
            _root(room_s - token_s * draft_tokens, token_s + pair_s * context_tokens, pair_s)
            for room_s, token_s, pair_s in rows
        )
        sizes = self.graph_sizes
        if not tokens or not sizes or tokens + others > sizes[-1]:
            return tokens
        at = bisect_left(sizes, tokens + others)
        padded = sizes[at] - decodes
        fits = min(
            _root(room_s - token_s * padded, pair_s * context_tokens, pair_s) for room_s, token_s, pair_s in rows
        )
        below = sizes[at - 1] - others if at else 0
        return min(fits, sizes[at] - others) if fits > below else max(0, below)

    def _padding_tokens(self, tokens: int) -> int:
        at = bisect_left(self.graph_sizes, tokens)
        return self.graph_sizes[at] - tokens if at < len(self.graph_sizes) else 0


def _root(room: float, linear: float, quadratic: float) -> int:
    """The largest whole n up to MAX_TOKENS with linear*n + quadratic*n^2/2 <= room; 0 where there is none."""
    if room < 0:
        return 0
    slope = linear + sqrt(linear * linear + 2 * quadratic * room)
    return int(2 * room / slope) if slope * MAX_TOKENS > 2 * room else MAX_TOKENS
