"""How long one engine step takes.

Notation, for a batch of prefill chunks i and decode requests:

    n_i, c_i   tokens of chunk i, and tokens of its request already in the KV cache
    P          sum of n_i: prefill tokens
    D          decode requests, one token each
    K          KV tokens that the decodes read
    A          sum of n_i*(c_i + n_i/2): query-key pairs of causal prefill attention
    S          sequences in the batch (chunks + D)
    G          CUDA-graph padding: tokens added to reach the next captured size

    gpu_s  = max over pieces of (c0 + a*(P + G) + d*D + k*K + q*A)
    step_s = max(gpu_s, launch_s) + cpu_step_s + cpu_sequence_s*S

Two pieces are enough: one where reading the weights dominates, one where arithmetic does. The form is the one of
SLOs-Serve (arXiv 2504.08784, max over pieces of a linear function), with the KV and attention terms added.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes. `chunks` holds (tokens, context tokens) of each prefill chunk."""

    chunks: tuple[tuple[int, int], ...] = ()
    decodes: int = 0
    kv_tokens: int = 0

    @property
    def prefill_tokens(self) -> int:
        return sum(n for n, _ in self.chunks)

    @property
    def attention_pairs(self) -> float:
        return sum(n * (c + n / 2) for n, c in self.chunks)


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
    graph_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("a batch time needs at least one piece")

    def seconds(self, batch: Batch) -> float:
        prefill = batch.prefill_tokens
        pairs = batch.attention_pairs
        padded = prefill + self._padding_tokens(prefill + batch.decodes)
        gpu_s = max(piece.seconds(padded, batch.decodes, batch.kv_tokens, pairs) for piece in self.pieces)
        sequences = len(batch.chunks) + batch.decodes
        return max(gpu_s, self.launch_s) + self.cpu_step_s + self.cpu_sequence_s * sequences

    def _padding_tokens(self, tokens: int) -> int:
        at = bisect_left(self.graph_sizes, tokens)
        return self.graph_sizes[at] - tokens if at < len(self.graph_sizes) else 0
