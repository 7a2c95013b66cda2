"""Steps of a model left out, predicted from its shape with rates calibrated on the others (perf/roofline.py)."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from sloguard.perf.fit import Sample
from sloguard.perf.gpus import GPUS, known_gpu
from sloguard.perf.model_shape import ModelShape
from sloguard.perf.models import MODELS
from sloguard.perf.roofline import KINDS, RATES, Rates, kind_of, predicted_time
from sloguard.perf.samples import COMPOSED, read_samples

CARDS = {  # as the tables spell them
    "a100_sxm": "A100-80GB", "h100_sxm": "H100", "h200_sxm": "H200", "b200_sxm": "B200", "l40s": "L40S",
    "RTX3090": "RTX-3090", "RTX4090": "RTX-4090", "RTX5090": "RTX-5090", "RTXPRO6000": "RTX-PRO-6000",
}  # fmt: skip

SCALARS = (
    "knee",
    "kv",
    "attention",
    "reread",
    "interconnect",
    "all_reduce_s",
    "sequence_layer_s",
    "context_layer_s",
)
START = Rates(
    *({kind.name: value for kind in KINDS} for value in (0.75, 0.8)),
    knee=0.6, kv=0.85, attention=0.5, reread=0.2, interconnect=0.65,
    all_reduce_s=5e-6, sequence_layer_s=0.15e-6, context_layer_s=20e-9,
)  # fmt: skip
SPREAD = 0.4  # of the log of a rate around its start: what the samples don't say stays plausible
SAMPLES_A_GROUP = 300
OUTLIER = 0.1  # a log error from here on counts by its size, not its square

TERMS = (  # the coefficients of a Piece that predictions have
    "base_s", "prefill_token_s", "decode_s", "kv_token_s", "attention_pair_s", "context_token_s", "mixed_kv_token_s",
)  # fmt: skip
Group = tuple[str, ModelShape, int, str]  # GPU, model, tensor-parallel ranks, kernels measured


@dataclass(frozen=True, slots=True)
class Steps:
    """`terms` [steps, 7] are what the coefficients in TERMS multiply."""

    terms: NDArray[np.float64]
    tokens: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @staticmethod
    def of(samples: list[Sample]) -> Steps:
        batches = [s.batch for s in samples]
        terms = [
            [
                1,
                b.prefill_tokens,
                b.decodes,
                b.kv_tokens,
                b.attention_pairs,
                b.context_tokens,
                b.kv_tokens * bool(b.chunks),
            ]
            for b in batches
        ]
        tokens = [b.prefill_tokens + b.decodes for b in batches]
        return Steps(*(np.array(v, np.float64) for v in (terms, tokens, [s.seconds for s in samples])))

    def some(self, at: NDArray[np.int64]) -> Steps:
        return Steps(self.terms[at], self.tokens[at], self.seconds[at])

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True, slots=True)
class LeftOut:
    gpu: str
    model: str
    tp: int
    kernels: str
    steps: int
    mape: float
    seen_mape: float  # by the rates that ship, which were fitted on these steps too
    rates_of: str  # where the rates came from with this model left out


def read_groups(data_dir: Path) -> tuple[dict[Group, Steps], set[str]]:
    """Of every table of composed steps below the directory (perf/samples.py); and the names of GPUs and models that
    aren't known, whose steps are left out.
    """
    groups: dict[Group, Steps] = {}
    unknown: set[str] = set()
    for path in sorted(data_dir.rglob("*.csv.gz")):
        with gzip.open(path, "rt") as file:
            reader = csv.DictReader(file)
            found = read_samples(reader) if set(reader.fieldnames or ()) >= COMPOSED else {}
        for (card, *kernels, name, tp), samples in found.items():
            gpu, model = known_gpu(CARDS.get(card, card)), shape_named(name)
            if gpu is None or model is None:
                unknown.add(card if gpu is None else name)
                continue
            measured = kernels[0] if kernels else path.name.split(".")[0].rsplit("_", 1)[-1]
            groups[gpu.name, model, int(tp), measured] = Steps.of(samples)
    return groups, unknown


def shape_named(name: str) -> ModelShape | None:
    """A shipped shape by its name, with or without the maker's and the "-hf" of converted checkpoints."""
    wanted = _bare(name)
    return MODELS.get(name) or next((shape for known, shape in MODELS.items() if _bare(known) == wanted), None)


def _bare(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower().removesuffix("-hf")


def leave_one_out(groups: Mapping[Group, Steps]) -> list[LeftOut]:
    """Every group by rates that saw no step of its model, nor of another by the same shape (Llama 2 and 3.1 70B)."""
    rows: list[LeftOut] = []
    rates_of: dict[tuple[int, ...], tuple[Rates, set[str]]] = {}
    for (gpu, model, tp, kernels), steps in groups.items():
        family = _family(model)
        if family not in rates_of:
            rest = {group: s for group, s in groups.items() if _family(group[1]) != family}
            rates_of[family] = calibrate(rest) if rest else (START, set())
        rates, seen = rates_of[family]
        source = f"{gpu} itself" if gpu in seen else f"without {gpu}: of {_others(gpu, seen)}"
        errors = [mape(r, (gpu, model, tp, kernels), steps) for r in (rates, RATES)]
        rows.append(LeftOut(gpu, model.name, tp, kernels, len(steps), *errors, source))
    return rows


def _family(model: ModelShape) -> tuple[int, ...]:
    return (model.layers, model.hidden, model.intermediate, model.heads, model.kv_heads)


def _others(gpu: str, seen: set[str]) -> str:
    kind = kind_of(GPUS[gpu])
    same = [other for other in seen if kind_of(GPUS[other]) is kind]
    return ", ".join(sorted(same or [other for other in seen if kind_of(GPUS[other]).gddr == kind.gddr] or seen))


def calibrate(groups: Mapping[Group, Steps]) -> tuple[Rates, set[str]]:
    """The rates with the smallest squared log errors over all groups alike, and the GPUs they saw."""
    rng = np.random.default_rng(0)
    some = {group: steps.some(rng.permutation(len(steps))[:SAMPLES_A_GROUP]) for group, steps in groups.items()}
    seen = {group[0] for group in groups}
    kinds = sorted({kind_of(GPUS[gpu]).name for gpu in seen})

    def rates(x: NDArray[np.float64]) -> Rates:
        """From logs of factors: of bandwidth by kind, of compute by kind, of the others."""
        bandwidth, compute, others = np.split(np.exp(x), [len(kinds), 2 * len(kinds)])
        return Rates(
            _by_kind(START.bandwidth, dict(zip(kinds, bandwidth, strict=True))),
            _by_kind(START.compute, dict(zip(kinds, compute, strict=True))),
            **{name: getattr(START, name) * float(factor) for name, factor in zip(SCALARS, others, strict=True)},
        )

    def errors(x: NDArray[np.float64]) -> NDArray[np.float64]:
        guess = rates(x)
        parts = [np.log(seconds(guess, group, steps) / steps.seconds) for group, steps in some.items()]
        return np.concatenate([*parts, x / SPREAD])

    start = np.zeros(2 * len(kinds) + len(SCALARS))
    return rates(least_squares(errors, start, loss="soft_l1", f_scale=OUTLIER).x), seen


def _by_kind(start: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """A kind that was not seen gets the mean factor of those with its memory, if any, else of all."""
    seen = [kind for kind in KINDS if kind.name in factors]
    shares: dict[str, float] = {}
    for kind in KINDS:
        like = [kind] if kind in seen else [other for other in seen if other.gddr == kind.gddr] or seen
        shares[kind.name] = start[kind.name] * float(np.mean([factors[other.name] for other in like]))
    return shares


def mape(rates: Rates, group: Group, steps: Steps) -> float:
    return float(np.mean(np.abs(seconds(rates, group, steps) / steps.seconds - 1)))


def seconds(rates: Rates, group: Group, steps: Steps) -> NDArray[np.float64]:
    """[steps] predicted, without the CPU's part, which composed steps do not have."""
    gpu, model, tp, _ = group
    time = predicted_time(model, GPUS[gpu], tp, rates)
    found = (steps.terms @ np.array([[getattr(piece, name) for piece in time.pieces] for name in TERMS])).max(axis=1)
    if not time.curve:
        return found
    corners = [tokens for tokens, _ in time.curve]
    rises = ((end - start) * slope for (start, end), (_, slope) in zip(pairwise(corners), time.curve, strict=False))
    return found + np.interp(steps.tokens, corners, list(accumulate(rises, initial=0.0)))


if __name__ == "__main__":  # python benchmarks/fidelity_shapes.py DATA_DIR: the constants of perf/roofline.py
    import sys

    print(calibrate(read_groups(Path(sys.argv[1]))[0])[0])
