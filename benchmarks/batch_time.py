"""How well do batch times predict steps that they were not fitted on?

    python benchmarks/batch_time.py DATA_DIR [--folds 5] [--only TEXT] [--json FILE]

Reads every CSV below DATA_DIR (gzipped too) whose columns perf/samples.py understands, whatever its name. For each
group (GPU, kernels, model, tensor-parallel degree): cross-validation over distinct batches, so that repeats of one
batch are never on both sides; sloguard's form and the one of SLOs-Serve on the same folds. Where a group has fewer than
200 batches, chance decides which share a fold: five partitions, errors over all. Bar: MAPE <= 5 %, R2 > 0.95.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sloguard.perf.fit import STRATA, Fitter, Residuals, Sample, by_stratum, fit, fit_paper, held_out, residuals
from sloguard.perf.samples import Group, read_samples, readable

FORMS: dict[str, Fitter] = {"sloguard": fit, "SLOs-Serve": fit_paper}
MAX_MAPE, MIN_R2 = 0.05, 0.95
FEW_SAMPLES, PARTITIONS = 200, 5
LEAST_SAMPLES = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", default="", help="groups whose name holds this text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tables, others = find_tables(arguments.data_dir)
    if not tables:
        parser.error(f"no table of step times below {arguments.data_dir}")

    print(f"{platform.machine()}, Python {platform.python_version()}; {arguments.folds} folds over distinct batches")
    print(f"\n{'':58}{'sloguard':^57}   {'SLOs-Serve form':^20}")
    print(f"{'group':50}{'n':>8}{'MAPE':>8}{'p95':>8}{'R2':>8}", *(f"{kind:>10}" for kind in STRATA), end="")
    print(f"   {'MAPE':>8}{'R2':>10}")
    rows: list[dict[str, object]] = []
    for table in tables:
        for group, samples in read_table(table).items():
            name = " ".join(group)
            if arguments.only not in name:
                continue
            if len(samples) < LEAST_SAMPLES:
                print(f"{name:50}{len(samples):>8} too few to fit and hold some out")
                continue
            row = {form: judged(samples, fitter, arguments.folds) for form, fitter in FORMS.items()}
            print(line(group, len(samples), *row.values()), flush=True)
            forms = {form: as_json(*result) for form, result in row.items()}
            rows.append({"table": table.name, "group": list(group), "batches": len(samples), **forms})
    print("\n* beyond the bar: MAPE <= 5 %, R2 > 0.95")
    if others:
        print(f"not tables of step times: {', '.join(path.name for path in others)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"folds": arguments.folds, "rows": rows}, indent=1) + "\n")


def find_tables(data_dir: Path) -> tuple[list[Path], list[Path]]:
    """CSV files below the directory: those that hold step times, and the others."""
    paths = sorted(path for path in data_dir.rglob("*") if path.name.endswith((".csv", ".csv.gz")))
    tables = [path for path in paths if readable(next(rows_of(path), {}))]
    return tables, [path for path in paths if path not in tables]


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        yield from csv.DictReader(file)


def read_table(path: Path) -> dict[Group, list[Sample]]:
    return read_samples(rows_of(path))


def judged(samples: list[Sample], fitter: Fitter, folds: int) -> tuple[Residuals, dict[str, Residuals]]:
    partitions = PARTITIONS if len(samples) < FEW_SAMPLES else 1
    predicted = np.concatenate([held_out(samples, fitter, folds, seed) for seed in range(partitions)])
    again = samples * partitions
    return residuals(again, predicted), by_stratum(again, predicted)


def line(
    group: Group, n: int, ours: tuple[Residuals, dict[str, Residuals]], papers: tuple[Residuals, dict[str, Residuals]]
) -> str:
    whole, strata = ours
    parts = (f"{strata[kind].mape:>10.1%}" if kind in strata else f"{'-':>10}" for kind in STRATA)
    beyond = "*" if whole.mape > MAX_MAPE or whole.r2 <= MIN_R2 else " "
    figures = f"{n:>8}{whole.mape:>8.1%}{whole.p95_ape:>8.1%}{whole.r2:>8.3f}"
    return (
        f"{' '.join(group):50}{figures}{beyond}" + " ".join(parts) + f"   {papers[0].mape:>8.1%}{papers[0].r2:>10.3f}"
    )


def as_json(whole: Residuals, strata: dict[str, Residuals]) -> dict[str, object]:
    return asdict(whole) | {"strata": {kind: asdict(part) for kind, part in strata.items()}}


if __name__ == "__main__":
    main()
