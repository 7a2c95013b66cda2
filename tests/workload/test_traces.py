"""Recorded workloads: every format read right, every mistake named by file, line and field."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paths import SHARED_DATA, needs_shared_data
from sloguard.errors import SpecError
from sloguard.request import Prefix
from sloguard.slo import NO_SLO, StageSLO
from sloguard.workload.traces import Row, read_trace

OURS = "arrival_s,input_tokens,output_tokens\n0.0,100,10\n0.5,200,20\n0.5,300,30\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:51,879,55\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n'
    '{"timestamp": 3000, "input_length": 512, "output_length": 7, "hash_ids": [0]}\n'
)


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "trace"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_ours(write, pack):
    trace = read_trace(write(pack(OURS)))
    assert trace.timed
    assert trace.rows == (Row(0.0, 100, 10), Row(0.5, 200, 20), Row(0.5, 300, 30))
    assert not trace.has_slos


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_azure_counts_from_its_first_row(write, pack):
    trace = read_trace(write(pack(AZURE)))
    np.testing.assert_allclose(trace.arrival_s(), [0, 4.314579, 4.319410], atol=1e-6)
    assert [row[1:3] for row in trace.rows] == [(374, 44), (396, 109), (879, 55)]


def test_azure_of_2024_names_its_zone(write):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:00.017335+00:00,2399,6\n"
    )
    np.testing.assert_allclose(read_trace(write(text)).arrival_s(), [0, 0.007405], atol=1e-9)


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_mooncake_shares_prefixes(write, pack):
    trace = read_trace(write(pack(MOONCAKE)))
    assert trace.rows == (Row(0.0, 700, 5, Prefix((0, 1), 512)), Row(3.0, 512, 7, Prefix((0,), 512)))


def test_lengths_alone_have_no_times(write):
    trace = read_trace(write("category,input_tokens,output_tokens\na,1,2\nb,3,4\n"))
    assert not trace.timed
    assert [row[1:3] for row in trace.rows] == [(1, 2), (3, 4)]


def test_slo_columns(write):
    text = (
        "slo_class,arrival_s,input_tokens,output_tokens,slo_ttft_s,slo_tpot_s,slo_e2el_s\n"
        "tight,0,1,1,0.5,0.05,\n,1,1,1,,,\nloose,2,1,1,,,30\n"
    )
    trace = read_trace(write(text))
    assert [row.slo_class for row in trace.rows] == ["tight", "default", "loose"]
    assert [row.slo for row in trace.rows] == [StageSLO(0.5, 0.05), NO_SLO, StageSLO(e2el_s=30.0)]
    assert trace.has_slos


@pytest.mark.parametrize("text", ["\ufeff" + OURS, OURS.replace("\n", "\r\n"), OURS.replace(",", ", "), OURS + "\n\n"])
def test_what_spreadsheets_do_to_a_csv_is_read_through(write, text):
    assert read_trace(write(text)).rows == read_trace(write(OURS)).rows


@pytest.mark.parametrize(
    ("share", "order", "times_s"),
    [(0.0, [1, 2, 3, 4], [2.0, 3.0, 3.0, 9.0]), (0.5, [3, 4, 1, 2], [0.0, 6.0, 8.0, 9.0])],
)
def test_a_trace_is_played_in_a_loop_from_anywhere(write, share, order, times_s):
    rows = "".join(f"{at_s},{prompt},5\n" for at_s, prompt in ((2, 1), (3, 2), (3, 3), (9, 4)))
    begun = read_trace(write("arrival_s,input_tokens,output_tokens\n" + rows)).begun_at(share)
    assert [row.input_tokens for row in begun.rows] == order
    assert begun.arrival_s().tolist() == times_s


def test_a_limit_stops_reading_a_timed_trace_there(write):
    assert len(read_trace(write(OURS + "nonsense\n"), limit=3).rows) == 3
    assert len(read_trace(write("input_tokens,output_tokens\n1,1\n2,2\n"), limit=1).rows) == 2


@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=30
    ).map(sorted)
)
def test_a_written_csv_is_read_back_bit_for_bit(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{t!r},{i},{o}\n" for t, i, o in rows))
    assert [tuple(row[:3]) for row in read_trace(path).rows] == rows


HEAD = "arrival_s,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "--workload", "no requests"),
        ("\n", "--workload", "no requests"),
        (HEAD, "--workload", "no requests"),
        (gzip.compress(b"", mtime=0), "--workload", "no requests"),
        (gzip.compress(OURS.encode(), mtime=0)[:-9], "--workload", "can't be read"),
        (b"\x1f\x8b garbage", "--workload", "can't be read"),
        (b"\xff\xfe\x00binary", "--workload", "no text file"),
        ("time,in,out\n0,1,1\n", ":1", "no workload format"),
        ('{"time": 0}\n', ":1", "no workload format"),
        (HEAD + "0,1\n", ":2", "2 cells under 3 columns"),
        (HEAD + "0,1,1\n0,1,1,1\n", ":3", "4 cells under 3 columns"),
        (HEAD + "0,1,1\nsoon,1,1\n", ":3 arrival_s", "not a finite number"),
        (HEAD + "nan,1,1\n", ":2 arrival_s", "not a finite number"),
        (HEAD + "inf,1,1\n", ":2 arrival_s", "not a finite number"),
        (HEAD + "1e999,1,1\n", ":2 arrival_s", "not a finite number"),
        (HEAD + "-1,1,1\n", ":2 arrival_s", "negative"),
        (HEAD + "5,1,1\n4,1,1\n", ":3 arrival_s", "before the row above (5 s)"),
        (HEAD + "0,0,1\n", ":2 input_tokens", "at least 1 token"),
        (HEAD + "0,1,-3\n", ":2 output_tokens", "at least 1 token"),
        (HEAD + "0,1,2.5\n", ":2 output_tokens", "whole number"),
        (HEAD + "0,,1\n", ":2 input_tokens", "whole number"),
        (HEAD + f"0,{10**30},1\n", ":2 input_tokens", "whole number"),
        ("slo_tfft_s," + HEAD + "1,0,1,1\n", ":1", "no such SLO column"),
        ("slo_ttft_s," + HEAD + "0,0,1,1\n", ":2 slo_ttft_s", "not a positive"),
        ("slo_ttft_s," + HEAD + "fast,0,1,1\n", ":2 slo_ttft_s", "not a finite number"),
        (AZURE + "yesterday,1,1\n", ":5 TIMESTAMP", "not a timestamp"),
        (AZURE + "2023-11-16 18:15:46,1,1\n", ":5 TIMESTAMP", "before the row above"),
        (MOONCAKE + "{\n", ":3", "not a JSON object"),
        (MOONCAKE + "[1]\n", ":3", "not a JSON object"),
        (MOONCAKE + "[" * 100_000 + "\n", ":3", "not a JSON object"),
        (MOONCAKE + '{"timestamp": 3000}\n', ":3 input_length", "missing"),
        (MOONCAKE.replace("3000", "NaN"), ":2 timestamp", "not a finite number"),
        (MOONCAKE.replace("3000", "true"), ":2 timestamp", "not a finite number"),
        (MOONCAKE.replace("3000", "-1"), ":2 timestamp", "negative"),
        (MOONCAKE.replace("700", "700.5"), ":1 input_length", "whole number"),
        (MOONCAKE.replace("[0]", "[0, 1]"), ":2 hash_ids", "more blocks"),
        (MOONCAKE.replace("[0]", '["0"]'), ":2 hash_ids", "not a list"),
        (MOONCAKE.replace("[0]", "0"), ":2 hash_ids", "not a list"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_field(write, text, where, what):
    path = write(text)
    with pytest.raises(SpecError) as raised:
        read_trace(path)
    message = str(raised.value)
    assert raised.value.field == (where if where.startswith("--") else f"{path}{where}")
    assert what in message
    assert str(path) in message
    assert "\n" not in message
    assert raised.value.fix


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(SpecError, match="--workload"):
        read_trace(tmp_path)


def test_a_missing_file_is_left_to_the_caller(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none.csv")


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: (HEAD + t).encode()))
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("t") / "trace"
    path.write_bytes(data)
    try:
        trace = read_trace(path)
    except SpecError:
        return
    assert trace.rows


# n, rate 1/s, gap CV, and input, output mean/p50/p99: "Trace statistics" of the data's README.
PUBLISHED = {
    "azure2023_code.csv.gz": (8819, 2.57, 13.15, (2048, 1469, 7436), (28, 13, 251)),
    "azure2023_conv.csv.gz": (19366, 5.53, 1.09, (1155, 1020, 4142), (211, 129, 601)),
    "mooncake_conversation.jsonl.gz": (12031, 3.40, 3.03, (12035, 6909, 85400), (343, 350, 1119)),
}


@needs_shared_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_public_traces_have_their_published_statistics(name):
    n, rate, gap_cv, *lengths = PUBLISHED[name]
    trace = read_trace(SHARED_DATA / "traces" / name)
    arrival_s, tokens = trace.arrival_s(), np.array([row[1:3] for row in trace.rows])
    gaps_s = np.diff(arrival_s)
    assert len(arrival_s) == n
    assert n / arrival_s[-1] == pytest.approx(rate, abs=0.006)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(gap_cv, abs=0.006)
    for column, (mean, p50, p99) in zip(tokens.T, lengths, strict=True):
        assert (column.mean(), np.percentile(column, 50)) == pytest.approx((mean, p50), abs=0.51)
        assert np.percentile(column, 99) == pytest.approx(p99, rel=0.001, abs=0.51)


@needs_shared_data
def test_mooncake_prefixes_have_the_published_hit_ratio():
    """Of an infinite cache in arrival order: 0.366."""
    seen: set[int] = set()
    hits = blocks = 0
    for row in read_trace(SHARED_DATA / "traces" / "mooncake_conversation.jsonl.gz").rows:
        assert row.prefix is not None
        assert len(row.prefix.block_ids) == math.ceil(row.input_tokens / row.prefix.block_tokens)
        hits += sum(block in seen for block in row.prefix.block_ids)
        blocks += len(row.prefix.block_ids)
        seen.update(row.prefix.block_ids)
    assert hits / blocks == pytest.approx(0.366, abs=0.0005)


@needs_shared_data
def test_every_public_length_file_is_read_whole():
    for path in sorted((SHARED_DATA / "lengths").glob("*.csv.gz")):
        with gzip.open(path, "rt") as text:
            assert len(read_trace(path).rows) == sum(1 for _ in text) - 1


def test_mooncake_lines_as_published_are_compact_json(write):
    line = json.dumps({"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": list(range(14))})
    (row,) = read_trace(write(line.replace(" ", ""))).rows
    assert row == Row(27.482, 6955, 52, Prefix(tuple(range(14)), 512))
