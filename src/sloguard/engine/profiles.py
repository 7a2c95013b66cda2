"""Saved profiles: what was learnt of an engine's step times, under the user's data directory.

A profile is found by what step times depend on: device, model (a name, or a path with a digest of its config.json),
engine version, and the engine arguments that were given. An argument that isn't known to leave step times alone is part
of the key: an engine that was never profiled as it is started now has no profile.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import platformdirs
import psutil

from sloguard.engine.gpu_detect import detect_gpu
from sloguard.errors import LogError, SpecError
from sloguard.perf.batch_time import BatchTime
from sloguard.perf.fit import MIN_SAMPLES, Residuals, Sample, by_stratum, fit, predict
from sloguard.perf.gpus import known_gpu
from sloguard.plugins.options import StepTimes
from sloguard.rng import stream
from sloguard.trial import Value

SCHEMA = 1
DATA_DIR = "SLOGUARD_DATA_DIR"
HELD_OUT = 0.2
SLOW = 2.0  # times the prediction: a stall, or a kernel compiled on first use
# Arguments that say how many and how long requests may be, how they are ordered or what is told of them. What a step
# holds may depend on them; how long it takes does not.
HARMLESS = frozenset(
    {
        "additional_config",
        "disable_log_stats",
        "disable_uvicorn_access_log",
        "download_dir",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enable_log_requests",
        "generation_config",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "long_prefill_token_threshold",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "num_gpu_blocks_override",
        "scheduler_cls",
        "scheduling_policy",
        "seed",
        "served_model_name",
        "tokenizer",
        "trust_remote_code",
        "watermark",
    }
)


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """`model_digest` is that of config.json where the model is a directory, else empty. `config`: sorted pairs."""

    device: str
    model: str
    model_digest: str
    engine_version: str
    config: tuple[tuple[str, Value], ...]

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        words = (re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-") for word in (self.device, Path(self.model).name))
        return "_".join((*words, digest)) + ".json"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A batch time from all samples. `held_out` [stratum] says how far a fit without a random fifth of them is off on
    that fifth. `slow_steps` took more than twice what the batch time says.
    """

    batch_time: BatchTime
    held_out: Mapping[str, Residuals]
    samples: int
    slow_steps: int


@dataclass(frozen=True, slots=True)
class Profile:
    """`effective` is what the engine said it runs with, `made_at` an ISO date and time."""

    key: ProfileKey
    fitted: Fitted
    effective: Mapping[str, Value]
    made_at: str

    def to_text(self) -> str:
        data = {
            "schema": SCHEMA,
            **asdict(self.key),
            "config": dict(self.key.config),
            "made_at": self.made_at,
            "samples": self.fitted.samples,
            "slow_steps": self.fitted.slow_steps,
            "held_out": {kind: asdict(found) for kind, found in self.fitted.held_out.items()},
            "batch_time": StepTimes.of(self.fitted.batch_time).model_dump(),
            "effective": dict(self.effective),
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Profile:
        """Raises ValueError for what is no profile of this schema."""
        data = json.loads(text)
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}, but this sloguard reads schema {SCHEMA}")
            device, model, digest = (str(data[name]) for name in ("device", "model", "model_digest"))
            config = tuple(sorted(data["config"].items()))
            key = ProfileKey(device, model, digest, str(data["engine_version"]), config)
            held_out = {str(kind): Residuals(**found) for kind, found in data["held_out"].items()}
            time = StepTimes.read(data["batch_time"]).batch_time()
            fitted = Fitted(time, held_out, int(data["samples"]), int(data["slow_steps"]))
            return cls(key, fitted, dict(data["effective"]), str(data["made_at"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field is missing or of another kind: {error}") from error


def profile_key(model: str, device: str, engine_version: str, arguments: Mapping[str, Value]) -> ProfileKey:
    """Of an engine as it is started. Raises SpecError for a model directory without a readable config.json."""
    matters = sorted((name, value) for name, value in arguments.items() if name not in HARMLESS)
    directory = Path(model).expanduser()
    if not directory.is_dir():
        return ProfileKey(device, model, "", engine_version, tuple(matters))
    try:
        digest = hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
    except OSError as error:
        fix = "Give the directory of a checkpoint."
        raise SpecError("--model", model, f"its config.json can't be read ({error.strerror})", fix) from error
    return ProfileKey(device, str(directory.resolve()), digest, engine_version, tuple(matters))


def device_name(stated: str | None, kind: Literal["cuda", "cpu"]) -> str:
    """One name for one device, whether the user or the driver says it. A CPU build runs on this machine's CPU.

    Raises SpecError where a GPU is neither stated nor found.
    """
    if kind == "cpu":
        return cpu_name()
    name = detect_gpu().name if stated is None else stated
    known = known_gpu(name)
    return known.name if known else name


def cpu_name() -> str:
    """Of this machine, with the number of its cores."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text(encoding="utf-8", errors="replace").splitlines() if found.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {psutil.cpu_count()} cores"


def profiles_dir() -> Path:
    """Where profiles are saved; not made here."""
    return Path(os.environ.get(DATA_DIR) or platformdirs.user_data_path("sloguard")) / "profiles"


def path_of(key: ProfileKey) -> Path:
    """Where the profile of such an engine is saved."""
    return profiles_dir() / key.file_name


def find(key: ProfileKey) -> Profile | None:
    """The saved profile of an engine; None where there is none. Raises LogError for one that can't be read."""
    path = path_of(key)
    return read_profile(path) if path.exists() else None


def read_profile(path: Path) -> Profile:
    """Raises LogError, naming the file and what to do."""
    fix = "Make it again with `sloguard profile`, or delete it."
    try:
        return Profile.from_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LogError(f"{path}: can't be read ({error.strerror or error}). {fix}") from error
    except ValueError as error:
        raise LogError(f"{path}: is no profile ({error}). {fix}") from error


def fit_steps(samples: Sequence[Sample], seed: int = 0) -> Fitted:
    """Raises ValueError for too few samples.

    Nothing is left out for being slow. The fit minimises relative errors, and above a tenth not their squares but
    themselves (max_affine.py): a step of a second among steps of ten milliseconds is off by 1 at most, and pulls no
    more than ten steps that are off by a tenth.
    """
    numbers = {batch: i for i, batch in enumerate(dict.fromkeys(s.batch for s in samples))}
    out = stream(seed, "held out").random(len(numbers)) < HELD_OUT  # equal batches go together
    kept = [s for s in samples if not out[numbers[s.batch]]]
    test = [s for s in samples if out[numbers[s.batch]]]
    if len(kept) < MIN_SAMPLES or not test:
        raise ValueError(f"{len(samples)} steps of {len(numbers)} kinds are too few to say how well they are fitted")
    held_out = by_stratum(test, predict(fit(kept).model, test))
    model = fit(samples).model
    predicted = predict(model, samples)
    slow = sum(s.seconds > SLOW * p for s, p in zip(samples, predicted.tolist(), strict=True))
    return Fitted(model, held_out, len(samples), slow)
