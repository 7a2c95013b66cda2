"""Fits the lengths and arrivals of the scenarios on public data and prints src/sloguard/workload/figures.py.

    python tools/fit_scenarios.py DATA_DIR > figures.py && ruff format figures.py

How well they fit goes to stderr. DATA_DIR holds, with the columns `input_tokens,output_tokens` (traces: `arrival_s`
too; trajectories: one row for each call, `trajectory` too), the gzipped CSV files named in `SOURCES` and in `FILES`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sloguard.rng import stream
from sloguard.workload.arrivals import Hyperexponential, Poisson
from sloguard.workload.lengths import FINE_LEVELS, LEVELS, Conditional, Quantiles

Pairs = NDArray[np.int64]  # [n, 2] prompt and output tokens
Figures = dict[str, Conditional | Quantiles | tuple[tuple[float, float], ...] | tuple[float, ...]]

CODE, CONV = "traces/azure2023_code.csv.gz", "traces/azure2023_conv.csv.gz"
BFCL = "lengths/bfcl_tool_calling_llama2tok.csv.gz"
TOOLBENCH = "lengths/toolbench_example_trajectories_llama2tok.csv.gz"
FILES = (CODE, CONV, BFCL, TOOLBENCH)

# File of each pair of lengths, and the rows that count. In 1223 rows of arXiv summarisation the "summary" is longer
# than the article: there the two are swapped.
SOURCES: dict[str, tuple[str, Callable[[Pairs], NDArray[np.bool_]]]] = {
    "CHATBOT": ("lengths/sharegpt_8k_llama2tok.csv.gz", lambda pairs: pairs[:, 0] > 0),
    "CODER": (CODE, lambda pairs: pairs[:, 0] > 0),
    "SUMMARIZER": ("lengths/arxiv_summarization_llama2tok.csv.gz", lambda pairs: pairs[:, 0] >= pairs[:, 1]),
    "REASONING": ("lengths/mlperf_deepseek_r1.csv.gz", lambda pairs: pairs[:, 0] > 0),
}
OUTPUT_TABLES = 3  # thirds of the prompts: more gain nothing, one misses that hard questions are short
WINDOWS = {CONV: (900.0, 1200.0), CODE: (1786.0, 2086.0)}  # SLOs-Serve's, seconds of the trace
WINDOW_TOTAL_TOKENS = 2048  # requests longer than this are dropped before, as there
KINDS_OF_GAPS = 4  # three reach a coefficient of variation of 4.7 only; a fifth adds nothing to the likelihood
SCALES_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

HEADER = '''"""Fitted figures of the scenarios, printed by tools/fit_scenarios.py: refit them, don't edit them.

Lengths are in tokens of Llama 2's tokenizer except where the source counted its own.

| figure | source @commit | what of it |
|---|---|---|
| CHATBOT | ShareGPT, 8k: project-etalon/etalon @d5f18de1 | all rows, multi-turn with history in the prompt |
| CODER | Azure LLM inference trace 2023, code: Azure/AzurePublicDataset @b469a113 | all rows, Azure's tokens |
| SUMMARIZER | arXiv summarisation: microsoft/vidur @7d475133 | rows whose summary is no longer than the article |
| REASONING | MLPerf DeepSeek-R1: openshift-psap/performance-dashboard @71007029 | all rows; outputs are cut at 32768 |
| TOOL_PROMPT | BFCL v4: ShishirPatil/gorilla @6ea57973 | functions and user turns |
| TOOL_LOOPS | OpenBMB/ToolBench @d56fdd89, THUNLP-MT/StableToolBench @aa4ed9f4 | shares of 0, 1, 2.. calls |
| TOOL_RESULT, TOOL_CALL, TOOL_ANSWER | the same 18 trajectories | new tokens of a turn; output of a call, of the last |
| CONV_RATE | Azure trace, conv, [900, 1200) s | requests of up to 2048 tokens; gaps are Poisson's |
| CODE_RATE, CODE_GAPS | Azure trace, code, [1786, 2086) s | the same; (share, mean seconds) of four kinds of gaps |
"""

from sloguard.workload.lengths import FINE_LEVELS, Conditional, Quantiles
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    data_dir: Path = parser.parse_args().data_dir
    figures = fitted(data_dir)
    print(HEADER)
    for name, figure in figures.items():
        print(f"{name} = {code(figure)}")
    report(data_dir, figures)


def fitted(data_dir: Path) -> Figures:
    """All figures by the name of their constant."""
    figures: Figures = {name: conditional(rows_of(data_dir, name)) for name in SOURCES}
    figures["TOOL_PROMPT"] = quantiles(read(data_dir / BFCL)[:, 0], LEVELS)
    figures |= tool_turns(data_dir / TOOLBENCH)
    conv_s, code_s = (window(data_dir / file, *WINDOWS[file]) for file in (CONV, CODE))
    figures["CONV_RATE"] = rate(CONV, conv_s)
    figures["CODE_RATE"] = rate(CODE, code_s)
    figures["CODE_GAPS"] = kinds_of_gaps(np.diff(code_s), KINDS_OF_GAPS)
    return figures


def rows_of(data_dir: Path, name: str) -> Pairs:
    file, counts = SOURCES[name]
    pairs = read(data_dir / file)
    return pairs[counts(pairs)]


def read(path: Path) -> Pairs:
    with gzip.open(path, "rt", newline="") as text:
        return np.array([(int(row["input_tokens"]), int(row["output_tokens"])) for row in csv.DictReader(text)])


def window(path: Path, start_s: float, end_s: float) -> NDArray[np.float64]:
    """Arrivals of the requests in the window that are short enough."""
    with gzip.open(path, "rt", newline="") as text:
        rows = [(float(r["arrival_s"]), int(r["input_tokens"]) + int(r["output_tokens"])) for r in csv.DictReader(text)]
    return np.array([at_s for at_s, total in rows if start_s <= at_s < end_s and total <= WINDOW_TOTAL_TOKENS])


def quantiles(tokens: NDArray[np.int64], levels: Sequence[int]) -> Quantiles:
    listed = np.rint(np.percentile(np.maximum(tokens, 1), levels)).astype(int)
    return Quantiles(tuple(listed.tolist()), tuple(levels))


def conditional(pairs: Pairs) -> Conditional:
    by_prompt = pairs[np.argsort(pairs[:, 0], kind="stable")]
    outputs = tuple(quantiles(part[:, 1], LEVELS) for part in np.array_split(by_prompt, OUTPUT_TABLES))
    return Conditional(quantiles(pairs[:, 0], FINE_LEVELS), outputs)


def tool_turns(path: Path) -> Figures:
    """The calls before the last are loops. What a call reads anew is its prompt less the call before and its output."""
    calls: dict[str, list[tuple[int, int]]] = {}
    with gzip.open(path, "rt", newline="") as text:
        for row in csv.DictReader(text):
            calls.setdefault(row["trajectory"], []).append((int(row["input_tokens"]), int(row["output_tokens"])))
    loops = Counter(len(turns) - 1 for turns in calls.values())
    new = [b[0] - sum(a) for turns in calls.values() for a, b in pairwise(turns)]
    return {
        "TOOL_LOOPS": tuple(round(loops[n] / len(calls), 4) for n in range(max(loops) + 1)),
        "TOOL_RESULT": quantiles(np.array(new), LEVELS),
        "TOOL_CALL": quantiles(np.array([turn[1] for turns in calls.values() for turn in turns[:-1]]), LEVELS),
        "TOOL_ANSWER": quantiles(np.array([turns[-1][1] for turns in calls.values()]), LEVELS),
    }


def rate(file: str, times_s: NDArray[np.float64]) -> float:
    start_s, end_s = WINDOWS[file]
    return round(len(times_s) / (end_s - start_s), 2)


def kinds_of_gaps(gaps_s: NDArray[np.float64], kinds: int) -> tuple[tuple[float, float], ...]:
    """(share, mean seconds) of the likeliest mixture of exponentials (expectation maximisation)."""
    shares = np.full(kinds, 1 / kinds)
    means_s = np.quantile(gaps_s, np.linspace(0.1, 0.99, kinds)) + 1e-4
    for _ in range(5000):
        weights = shares / means_s * np.exp(-gaps_s[:, None] / means_s)
        weights /= weights.sum(axis=1, keepdims=True)
        shares = weights.mean(axis=0)
        means_s = (weights * gaps_s[:, None]).sum(axis=0) / weights.sum(axis=0)
    listed = [round(share, 4) for share in shares.tolist()]
    listed[0] = round(1 - sum(listed[1:]), 4)
    return tuple((share, float(f"{mean_s:.3g}")) for share, mean_s in zip(listed, means_s.tolist(), strict=True))


def code(figure: object) -> str:
    if isinstance(figure, Quantiles):
        return f"Quantiles({figure.tokens}{', FINE_LEVELS' if figure.levels == FINE_LEVELS else ''})"
    if isinstance(figure, Conditional):
        outputs = ", ".join(map(code, figure.outputs))
        return f"Conditional(prompt={code(figure.prompt)}, outputs=({outputs}))"
    return repr(figure)


def report(data_dir: Path, figures: Figures) -> None:
    """What is drawn beside what was recorded, to stderr."""
    for name in SOURCES:
        recorded, lengths = rows_of(data_dir, name), figures[name]
        assert isinstance(lengths, Conditional)
        drawn = lengths.draw(stream(0, "fit"), 200_000)
        for cap in (2048, 8192):
            ours, theirs = (pairs[pairs.sum(axis=1) <= cap] for pairs in (drawn, recorded))
            distances = ", ".join(
                f"{what} {distance(a, b):.3f} (mean {a.mean():.0f}, recorded {b.mean():.0f})"
                for what, a, b in (
                    ("prompt", ours[:, 0], theirs[:, 0]),
                    ("output", ours[:, 1], theirs[:, 1]),
                    ("both", ours.sum(axis=1), theirs.sum(axis=1)),
                )
            )
            kept = f"{len(ours) / len(drawn):.2f} drawn and {len(theirs) / len(recorded):.2f} recorded are kept"
            print(f"{name} up to {cap}: {kept}; Kolmogorov-Smirnov {distances}", file=sys.stderr)
    gaps = figures["CODE_GAPS"]
    processes = {CONV: Poisson(1.0), CODE: Hyperexponential(1.0, gaps)}  # type: ignore[arg-type]
    for file, process in processes.items():
        start_s, end_s = WINDOWS[file]
        recorded_s = window(data_dir / file, start_s, end_s) - start_s
        scaled = [
            unevenness(times * (end_s - start_s) / times[-1], end_s - start_s)
            for times in (process.times(stream(seed, "fit"), len(recorded_s)) for seed in range(200))
        ]
        low, middle, high = np.percentile(scaled, (10, 50, 90), axis=0)
        print(f"{file}: {len(recorded_s)} requests; recorded, and drawn p10 p50 p90 of 200 windows", file=sys.stderr)
        names = ("CV of gaps", *(f"dispersion at {scale_s:g} s" for scale_s in SCALES_S))
        for name, *row in zip(names, unevenness(recorded_s, end_s - start_s), low, middle, high, strict=True):
            print(f"  {name:22}" + "".join(f"{value:8.2f}" for value in row), file=sys.stderr)


def unevenness(times_s: NDArray[np.float64], window_s: float) -> list[float]:
    """Coefficient of variation of the gaps, and variance/mean of counts at each of `SCALES_S`, over five phases."""
    gaps_s = np.diff(times_s)
    found = [float(gaps_s.std() / gaps_s.mean())]
    for scale_s in SCALES_S:
        starts = np.arange(5) * scale_s / 5
        counts = [np.histogram(times_s, np.arange(start, window_s + 1e-9, scale_s))[0] for start in starts]
        found.append(float(np.mean([count.var() / count.mean() for count in counts])))
    return found


def distance(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two distribution functions."""
    at = np.unique(theirs)
    shares = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (ours, theirs)]
    return float(np.abs(shares[0] - shares[1]).max())


if __name__ == "__main__":
    main()
