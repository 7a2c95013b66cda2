"""How long one engine step takes.

Notation, for a batch of prefill chunks i and decode requests:

    n_i, c_i   tokens of chunk i, and tokens of its request already in the KV cache
    P, C       sums of n_i and of c_i
    D          decode requests, one token each
    K          KV tokens that the decodes read
    M, L       K and K/D where there are chunks too, else 0: kernels for mixed batches read the KV of decodes less
               well, and don't spread one decode's over the GPU
    A          sum of n_i*(c_i + n_i/2): query-key pairs of causal prefill attention
    S          sequences in the batch (chunks + D)
    V, v       drafted tokens that the decodes verify, and sequential steps of drafting (the longest draft)
    G          CUDA-graph padding: tokens added to reach the next captured size

    gpu_s  = max over pieces of (b + a*(P + V + G) + d*D + k*K + m*M + l*L + q*A + c*C) + curve(P + D + V + G) + s*v
    step_s = max(gpu_s, launch_s) + cpu_step_s + cpu_sequence_s*S

The maximum is the form of SLOs-Serve (arXiv 2504.08784): a piece where reading memory dominates, one where arithmetic
does. The curve, zero for zero tokens, never falls and is linear between its corners. It holds what no maximum of linear
functions can, because it isn't convex: where GEMM and all-reduce change their kernel.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from math import inf, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_Line = tuple[float, float, float, float]  # room, and seconds a token, a token's context, a pair

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
    def context_tokens(self) -> int:
        return sum(c for _, c in self.chunks)

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
    """One linear function of a batch: b, a, d, k, q, c, m and l of the notation, in seconds per unit. Only `base_s` may
    be negative, and not in every piece of a batch time.
    """

    base_s: float
    prefill_token_s: float
    decode_s: float
    kv_token_s: float
    attention_pair_s: float
    context_token_s: float = 0.0
    mixed_kv_token_s: float = 0.0
    mixed_length_token_s: float = 0.0

    def scaled(self, factor: float) -> Piece:
        return Piece(*(factor * value for value in _values(self)))


@dataclass(frozen=True, slots=True)
class BatchTime:
    """Seconds of a step on one replica (one GPU, or one tensor-parallel group).

    `graph_sizes` are the batch sizes that were captured as CUDA graphs, ascending; batches up to the largest are
    padded to the next. `launch_s` is the time the CPU needs to launch the kernels of a step that is not a graph:
    the GPU waits for it. `curve` holds (from so many tokens on, seconds per token), ascending from 0.
    """

    pieces: tuple[Piece, ...]
    cpu_step_s: float = 0.0
    cpu_sequence_s: float = 0.0
    launch_s: float = 0.0
    draft_step_s: float = 0.0
    graph_sizes: tuple[int, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    _rows: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)
    _corners: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _segments: tuple[tuple[int, float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("a batch time needs at least one piece")
        curve = self.curve or ((0, 0.0),)
        corners = [tokens for tokens, _ in curve]
        if corners[0] != 0 or corners != sorted(set(corners)) or min(slope for _, slope in curve) < 0:
            raise ValueError("a curve starts at 0 tokens, ascends in tokens and never falls")
        # Plain tuples unpack several times faster than attributes are read, and `seconds` is asked in hot loops.
        object.__setattr__(self, "_rows", tuple(_values(piece) for piece in self.pieces))
        object.__setattr__(self, "_corners", tuple(corners))
        object.__setattr__(self, "_segments", tuple(_segments(curve)))

    def seconds(self, batch: Batch) -> float:
        prefill, context, pairs = 0, 0, 0.0
        for tokens, before in batch.chunks:
            prefill += tokens
            context += before
            pairs += tokens * (before + tokens / 2)
        chunks = len(batch.chunks)
        return self._seconds(
            prefill + batch.draft_tokens,
            pairs,
            context,
            chunks,
            batch.decodes,
            batch.kv_tokens,
            self.draft_step_s * batch.draft_steps,
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
            return self._seconds(tokens + draft_tokens, pairs, context_tokens, 1, decodes, kv_tokens, draft_s)

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
            return np.array([self._seconds(0, 0.0, 0, 0, decodes, kv, 0.0) for kv in run])
        padding, curve_s = self._padded(0, decodes)
        kv = kv_tokens + decodes * np.arange(steps)
        gpu_s = np.full(steps, -inf)
        for base_s, token_s, decode_s, kv_token_s, *_ in self._rows:
            np.maximum(gpu_s, base_s + token_s * padding + decode_s * decodes + kv_token_s * kv, out=gpu_s)
        gpu_s += curve_s + 0.0
        return np.maximum(gpu_s, self.launch_s) + self.cpu_step_s + self.cpu_sequence_s * decodes

    def scaled(self, factor: float) -> BatchTime:
        """Every step takes `factor` times as long."""
        return replace(
            self,
            pieces=tuple(piece.scaled(factor) for piece in self.pieces),
            cpu_step_s=factor * self.cpu_step_s,
            cpu_sequence_s=factor * self.cpu_sequence_s,
            launch_s=factor * self.launch_s,
            draft_step_s=factor * self.draft_step_s,
            curve=tuple((tokens, factor * slope) for tokens, slope in self.curve),
        )

    def reading(self, weights_s: float, kv_factor: float) -> BatchTime:
        """With weights that take so much longer to read (negative: less long) and KV that takes `kv_factor` as long."""
        return replace(
            self,
            pieces=tuple(
                replace(
                    piece,
                    base_s=piece.base_s + weights_s,
                    kv_token_s=piece.kv_token_s * kv_factor,
                    mixed_kv_token_s=piece.mixed_kv_token_s * kv_factor,
                    mixed_length_token_s=piece.mixed_length_token_s * kv_factor,
                )
                for piece in self.pieces
            ),
        )

    def lower_pieces(self) -> tuple[Piece, ...]:
        """Linear functions whose maximum is never above a step's GPU time, and equals it where the curve is convex:
        each piece with each line of the curve's lower convex hull.
        """
        return tuple(
            replace(
                piece,
                base_s=piece.base_s + offset_s,
                prefill_token_s=piece.prefill_token_s + slope_s,
                decode_s=piece.decode_s + slope_s,
            )
            for piece in self.pieces
            for offset_s, slope_s in _hull(self._segments)
        )

    def _padded(self, tokens: int, decodes: int) -> tuple[int, float]:
        """`tokens` (of chunks and drafts) with CUDA-graph padding, and the curve's seconds for them and the decodes."""
        total = tokens + decodes
        sizes = self.graph_sizes
        if sizes and total <= sizes[-1]:
            size = sizes[bisect_left(sizes, total)]
            tokens += size - total
            total = size
        if not self.curve:
            return tokens, 0.0
        start, start_s, slope_s = self._segments[bisect_right(self._corners, total) - 1]
        return tokens, start_s + slope_s * (total - start)

    def _seconds(
        self, tokens: int, pairs: float, context: int, chunks: int, decodes: int, kv_tokens: int, draft_s: float
    ) -> float:
        """`tokens` are those of chunks and drafts together."""
        tokens, curve_s = self._padded(tokens, decodes)
        gpu_s = -inf
        length = kv_tokens / decodes if decodes else 0.0
        for base_s, token_s, decode_s, kv_token_s, pair_s, context_s, mixed_s, length_s in self._rows:
            piece_s = base_s + token_s * tokens + decode_s * decodes + kv_token_s * kv_tokens
            if chunks:
                piece_s += pair_s * pairs + context_s * context + mixed_s * kv_tokens + length_s * length
            if piece_s > gpu_s:
                gpu_s = piece_s
        gpu_s += curve_s + draft_s
        if gpu_s < self.launch_s:
            gpu_s = self.launch_s
        return gpu_s + self.cpu_step_s + self.cpu_sequence_s * (chunks + decodes)

    def _most_tokens(self, gpu_s: float, decodes: int, kv_tokens: int, context_tokens: int, draft_tokens: int) -> int:
        """The root of `_seconds` in the tokens of one chunk, up to rounding.

        Each piece is room >= a*n + q*(n*c + n^2/2) + curve. A chunk that overruns the last graph is not padded. Below
        it the root lies in some graph's range: either the padding to that graph fits too, or the largest chunk is the
        one that fills the graph before.
        """
        others = draft_tokens + decodes
        mean = kv_tokens / decodes if decodes else 0.0
        lines: list[_Line] = []
        for base_s, token_s, decode_s, kv_s, pair_s, context_s, mixed_s, length_s in self._rows:
            fixed_s = base_s + token_s * draft_tokens + decode_s * decodes + (kv_s + mixed_s) * kv_tokens
            room_s = gpu_s - fixed_s - context_s * context_tokens - length_s * mean
            lines.append((room_s, token_s, pair_s * context_tokens, pair_s))
        tokens = self._unpadded(lines, others)
        sizes = self.graph_sizes
        if not tokens or not sizes or tokens + others > sizes[-1]:
            return tokens
        at = bisect_left(sizes, tokens + others)
        size, curve_s = self._padded(sizes[at], 0)
        fits = MAX_TOKENS
        for room_s, token_s, linear_s, pair_s in lines:
            fits = min(fits, _root(room_s - curve_s - token_s * (size - others), linear_s, pair_s))
        below = sizes[at - 1] - others if at else 0
        return min(fits, size - others) if fits > below else max(0, below)

    def _unpadded(self, lines: Sequence[_Line], others: int) -> int:
        """The root without padding: in the last of the curve's segments whose start fits."""
        segments = self._segments
        at = bisect_right(self._corners, others)
        while at < len(segments) and _fits(lines, segments[at][0] - others, segments[at][1]):
            at += 1
        start, start_s, slope_s = segments[at - 1]
        curve_s = start_s - slope_s * (start - others)
        tokens = MAX_TOKENS if at == len(segments) else segments[at][0] - others
        for room_s, token_s, linear_s, pair_s in lines:
            tokens = min(tokens, _root(room_s - curve_s, token_s + slope_s + linear_s, pair_s))
        return tokens


def _values(piece: Piece) -> tuple[float, ...]:
    return tuple(getattr(piece, f.name) for f in fields(Piece))


def _segments(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float, float]]:
    """(first token, seconds there, seconds per token) of each."""
    segments = [(0, 0.0, curve[0][1])]
    for (start, slope_s), (end, next_s) in pairwise(curve):
        segments.append((end, segments[-1][1] + slope_s * (end - start), next_s))
    return segments


def _hull(segments: Sequence[tuple[int, float, float]]) -> list[tuple[float, float]]:
    """(seconds at zero tokens, seconds per token) of the lines whose maximum is the curve's lower convex hull."""
    corners: list[tuple[float, float]] = []
    for tokens, seconds, _ in segments:
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], (tokens, seconds)):
            corners.pop()
        corners.append((tokens, seconds))
    last_slope_s = segments[-1][2]
    while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= last_slope_s:
        corners.pop()
    slopes = [*(_slope(a, b) for a, b in pairwise(corners)), last_slope_s]
    return [(seconds - slope_s * tokens, slope_s) for (tokens, seconds), slope_s in zip(corners, slopes, strict=True)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _fits(lines: Sequence[_Line], n: int, curve_s: float) -> bool:
    for room_s, token_s, linear_s, pair_s in lines:
        if curve_s + n * (token_s + linear_s + pair_s * n / 2) > room_s:
            return False
    return True


def _root(room: float, linear: float, quadratic: float) -> int:
    """The largest whole n up to MAX_TOKENS with linear*n + quadratic*n^2/2 <= room; 0 where there is none."""
    if room < 0:
        return 0
    slope = linear + sqrt(linear * linear + 2 * quadratic * room)
    return int(2 * room / slope) if slope * MAX_TOKENS > 2 * room else MAX_TOKENS
