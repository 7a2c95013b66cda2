"""Does a server stand what comes? Requests made from its own OpenAPI schema, half of them against it, and promises that
are none.

    python benchmarks/serve_fuzz.py http://127.0.0.1:8000 [--beside http://127.0.0.1:8001] [--requests 500]

Needs `pip install schemathesis` beside sloguard. With --beside every request that gets a 5xx is sent to that server too
(stock vLLM with the same model): what fails there as well is vLLM's own. Exit code 1 where something else does, where
nothing comes within --patience seconds, or where the server does not serve a good request at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests
import schemathesis  # pyright: ignore[reportMissingImports]
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sloguard.sched.asked import FIELDS

Send = Callable[[str], requests.Response]
HUNG = "no answer"
COMPLETIONS = "/v1/completions"
AWKWARD = ("", "soon", "-1", "0", "1e999", "nan", "inf", "1e-9", "86400001", "5e2", " 300 ", "é", "0x10", "1_0")
VALUES = st.one_of(
    st.sampled_from(AWKWARD),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
NAMES = st.one_of(st.sampled_from(FIELDS), st.sampled_from(("slo_ttft", "slo_e2el_ms", "SLO_CLASS")))
HEADER_VALUES = st.one_of(st.sampled_from(AWKWARD[1:11]), st.integers().map(str), st.floats().map(str))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--beside", help="URL of stock vLLM")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds")
    options = parser.parse_args()
    told = Tally(options.url, options.beside)
    third = options.requests // 3
    schema = schemathesis.openapi.from_url(f"{options.url}/openapi.json")
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

        def send(case: Any) -> None:
            def to(url: str) -> requests.Response:
                return case.call(base_url=url, timeout=options.patience)

            told.note(f"{case.method} {case.path}", to)

        repeat(schema.as_strategy(generation_mode=mode), third, options.seed, send)
    repeat(
        promises(options.patience), options.requests - 2 * third, options.seed, lambda ask: told.note("promises", ask)
    )
    told.say()
    good = requests.post(f"{options.url}{COMPLETIONS}", json=_body({"slo_ttft_ms": 60000}), timeout=options.patience)
    print(f"a good request after that: {good.status_code}")
    return 1 if told.ours or good.status_code != requests.codes.ok else 0


class Tally:
    def __init__(self, url: str, beside: str | None) -> None:
        self._url, self._beside = url, beside
        self._statuses: dict[str, Counter[str]] = {}
        self.ours: list[str] = []
        self._theirs = 0

    def note(self, name: str, send: Send) -> None:
        status, text = _answer(send, self._url)
        self._statuses.setdefault(name, Counter())[status] += 1
        if not _failed(status):
            return
        if self._beside and _failed(_answer(send, self._beside)[0]):
            self._theirs += 1
        else:
            self.ours.append(f"{name}: {status} {text[:200]}")

    def say(self) -> None:
        for name, statuses in sorted(self._statuses.items()):
            print(f"{name:40} {'  '.join(f'{status}: {n}' for status, n in sorted(statuses.items()))}")
        total = sum(n for statuses in self._statuses.values() for n in statuses.values())
        print(f"{total} requests; {self._theirs} failures that stock vLLM has too, {len(self.ours)} others")
        for line in self.ours:
            print(f"  {line}")


def _answer(send: Send, url: str) -> tuple[str, str]:
    try:
        response = send(url)
    except requests.exceptions.RequestException as error:
        return HUNG, repr(error)
    return str(response.status_code), response.text


def _failed(status: str) -> bool:
    return status == HUNG or status.startswith("5")


def repeat(strategy: st.SearchStrategy[Any], count: int, number: int, act: Callable[[Any], None]) -> None:
    left = iter(range(count))

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn: Any) -> None:
        if next(left, None) is not None:
            act(drawn)

    run()


def promises(patience_s: float) -> st.SearchStrategy[Send]:
    """Requests that are good but for what they ask of time, in the body, in headers, or in both."""
    headers = st.dictionaries(NAMES.map(lambda name: f"x-{name.replace('_', '-')}"), HEADER_VALUES, max_size=2)
    given_ = st.one_of(st.dictionaries(NAMES, VALUES, max_size=3), VALUES)
    return st.builds(_asking, given_, headers, st.just(patience_s))


def _asking(given: object, headers: dict[str, str], patience_s: float) -> Send:
    def send(url: str) -> requests.Response:
        data = json.dumps(_body(given)).encode(errors="replace")
        told = {"content-type": "application/json", **{k: v.strip() for k, v in headers.items()}}
        return requests.post(f"{url}{COMPLETIONS}", data=data, headers=told, timeout=patience_s)

    return send


def _body(given: object) -> dict[str, Any]:
    return {"prompt": "Once upon a time", "max_tokens": 4, "vllm_xargs": given}


if __name__ == "__main__":
    sys.exit(main())
