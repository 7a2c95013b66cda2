"""Five times what the replicas carry, for two minutes: what is kept, how soon is it over, does anything stay?

    python benchmarks/fleet_overload.py [--backend local] [--rate 6] [--times 5] [--seconds 120] [--waves 2]

Two emulated replicas (Llama-3.1-8B on L4), an open loop of the three classes of serve_arms.py with twice their limits:
first `--rate`, which they carry, then `--times` as much, then `--rate` again, `--waves` times. A row for every 10 s of
arrivals. At the end nothing may be under way any more, and no wave may take more memory than the first.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from time import monotonic, sleep

import numpy as np
from fleet_arms import EMULATED, Fleet, fleet
from serve_arms import CLASSES, mixed_requests

from sloguard.contract import judge_request
from sloguard.load.drive import offer
from sloguard.load.promises import promise_fields
from sloguard.load.target import Target
from sloguard.request import End, Request, Timeline
from sloguard.rng import stream
from sloguard.slo import Judgement, TpotRule
from sloguard.workload.arrivals import Poisson

WINDOW_S = 10.0
BEFORE_S, AFTER_S = 60.0, 90.0
PROMISES = 2.0
TIMEOUT_S = 180.0
NEAR = 0.05  # of the attainment before: then it is over
WIDTHS = (8, 9, 6, 9, 9, 9, 10, 12)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="local", choices=("local", "ray"))
    parser.add_argument("--rate", type=float, default=6.0, help="requests/s that the replicas carry")
    parser.add_argument("--times", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--waves", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("fleet-overload"))
    options = parser.parse_args()
    lasting_s = [BEFORE_S, *[options.seconds, AFTER_S] * options.waves]
    changes_s = (0.0, *accumulate(lasting_s))
    requests = profile(changes_s, [options.rate, *[options.rate * options.times, options.rate] * options.waves])
    with fleet([*EMULATED, "--backend", options.backend], options.replicas, options.out / "serve.log") as served:
        target = Target(served.url, served.model())
        memory_mib: list[tuple[float, float]] = []
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(served, memory_mib, over))
        watcher.start()
        offered = offer(target, requests, seed=0, request_timeout_s=TIMEOUT_S, extra=promise_fields)
        sleep(5.0)
        over.set()
        watcher.join()
        left = {name: served.count(name) for name in ("sloguard_jobs", "sloguard_tracked_requests")}
    rows = _rows(offered.timelines, changes_s, memory_mib)
    print("| from, s | offered/s | kept | completed | refused | failed | timed out | memory, MiB |")
    print("|" + " ---: |" * len(WIDTHS))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    for begins_s, ends_s, last_s in zip(changes_s[1:-1:2], changes_s[2::2], changes_s[3::2], strict=True):
        held = [mib for at_s, mib in memory_mib if begins_s <= at_s < last_s]
        print(f"\noverload at {begins_s:.0f} s: {_recovery(offered.timelines, begins_s, ends_s, last_s)}; ", end="")
        print(f"at most {max(held):.0f} MiB")
    print(f"left behind: {left}")
    print("errors:", Counter(one.error[:100] for one in offered.timelines if one.error).most_common(5))
    print("\n".join(offered.notes))
    return 1 if any(left.values()) else 0


def profile(changes_s: Sequence[float], rates: Sequence[float]) -> list[Request]:
    """Classes as `mixed_requests` deals them, at instants of a rate that changes."""
    times_s: list[float] = []
    for (start_s, end_s), rate in zip(pairwise(changes_s), rates, strict=True):
        drawn = start_s + Poisson(rate).times(stream(0, "overload", start_s), round(2 * rate * (end_s - start_s)))
        times_s += [at_s for at_s in drawn.tolist() if at_s < end_s]
    dealt = mixed_requests(len(times_s) / changes_s[-1], changes_s[-1], 0, PROMISES)
    return [
        Request(f"r{number}", at_s, request.stages, request.slo_class)
        for number, (at_s, request) in enumerate(zip(times_s, dealt, strict=True))
    ]


def _watch(served: Fleet, memory_mib: list[tuple[float, float]], over: threading.Event) -> None:
    began_s = monotonic()
    while not over.wait(WINDOW_S / 2):
        resident = sum(process.memory_info().rss for process in served.members())
        memory_mib.append((monotonic() - began_s, resident / 2**20))


def _promised(timelines: Sequence[Timeline]) -> list[Timeline]:
    names = {kind.name for kind in CLASSES if kind.slo.ttft_s is not None}
    return [timeline for timeline in timelines if timeline.request.slo_class in names]


def _kept(timelines: Sequence[Timeline]) -> float:
    judged = [judge_request(one, TpotRule.MEAN) is Judgement.MET for one in _promised(timelines)]
    return sum(judged) / len(judged) if judged else float("nan")


def _windows(timelines: Sequence[Timeline], end_s: float) -> list[tuple[float, list[Timeline]]]:
    starts = np.arange(0.0, end_s, WINDOW_S).tolist()
    return [(at, [one for one in timelines if at <= one.due_s < at + WINDOW_S]) for at in starts]


def _rows(
    timelines: Sequence[Timeline], changes_s: Sequence[float], memory_mib: Sequence[tuple[float, float]]
) -> list[list[str]]:
    rows: list[list[str]] = []
    for start_s, due in _windows(timelines, changes_s[-1]):
        ends = [sum(one.end is end for one in due) for end in (End.COMPLETED, End.REFUSED, End.FAILED, End.TIMED_OUT)]
        held = [mib for at_s, mib in memory_mib if start_s <= at_s < start_s + WINDOW_S]
        memory = f"{max(held):.0f}" if held else ""
        rows.append([f"{start_s:.0f}", f"{len(due) / WINDOW_S:.1f}", f"{_kept(due):.0%}", *map(str, ends), memory])
    return rows


def _recovery(timelines: Sequence[Timeline], begins_s: float, ends_s: float, last_s: float) -> str:
    """From when on every window is like those before the overload."""
    before = _kept([one for one in timelines if begins_s - BEFORE_S <= one.due_s < begins_s])
    after = [window for window in _windows(timelines, last_s) if window[0] >= ends_s]
    poor_s = [start_s + WINDOW_S for start_s, due in after if _kept(due) < before - NEAR]
    took_s = max(poor_s, default=ends_s) - ends_s
    return f"{took_s:.0f} s after it as many are kept as before ({before:.0%})"


if __name__ == "__main__":
    sys.exit(main())
