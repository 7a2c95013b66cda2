"""Engine arguments: what is read as what, and what never gets into a study's files."""

from __future__ import annotations

import re

import pytest

from paths import REPO
from sloguard.cli.options import parse_engine_args
from sloguard.errors import SpecError
from sloguard.trial import Value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("-1", -1),
        ("0", 0),
        ("0.90", 0.9),
        ("1e-5", 1e-5),
        ("1.5E3", 1500.0),
        ("true", True),
        ("False", False),
        (" 8 ", 8),
        ("12:30", "12:30"),
        ("off", "off"),
        ("yes", "yes"),
        ("none", "none"),
        ("null", "null"),
        ("~", "~"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("0123456", "0123456"),
        ("12e45678", "12e45678"),
        ("2024-01-01", "2024-01-01"),
        ("8k", "8k"),
        ("a=b", "a=b"),
        ("infinite", "infinite"),
        ("nano", "nano"),
        ("9" * 5000, "9" * 5000),
        ('{"rope_type": "yarn"}', '{"rope_type": "yarn"}'),
    ],
)
def test_only_numbers_and_truth_are_more_than_text(text: str, value: Value) -> None:
    (read,) = parse_engine_args([f"--some-name={text}"]).items()
    assert read == ("some_name", value)
    assert type(read[1]) is type(value)


@pytest.mark.parametrize("text", ["", "  ", "inf", "-inf", ".inf", "Infinity", "nan", ".NaN", "1.0e999"])
def test_no_value_and_endless_ones_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--engine-arg"):
        parse_engine_args([f"max_num_seqs={text}"])


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("hf_token", "HF_TOKEN"),
        ("--hf-token", "HF_TOKEN"),
        ("HF_TOKEN", "environment"),
        ("api_key", "Drop it"),
        ("token", "environment"),
        ("client_secret", "environment"),
        ("db_password", "environment"),
        ("model_loader_extra_config.aws_secret_access_key", "environment"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(name: str, fix: str) -> None:
    with pytest.raises(SpecError, match=fix) as raised:
        parse_engine_args(["dtype=auto", f"{name}=hush", f"{name}=hush"])
    assert "hush" not in str(raised.value)


def test_a_secret_within_json_is_refused_and_not_repeated() -> None:
    with pytest.raises(SpecError, match="apiKey") as raised:
        parse_engine_args(['kv_transfer_config={"store": {"apiKey": "hush"}}'])
    assert "hush" not in str(raised.value)


def test_of_vllms_own_flags_two_are_secrets() -> None:
    text = (REPO / "tests" / "golden" / "vllm_0.32_help.txt").read_text()
    flags = {flag for line in re.findall(r"^ {2}(-.*)$", text, re.MULTILINE) for flag in re.findall(r"--[a-z-]+", line)}
    refused = set()
    for flag in flags:
        try:
            parse_engine_args([f"{flag}=x"])
        except SpecError:
            refused.add(flag)
    assert len(flags) > 100
    assert refused == {"--hf-token", "--api-key"}
