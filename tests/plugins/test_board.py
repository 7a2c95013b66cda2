from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sloguard.plugins.board import FORMAT, Board, Boards, Notice

LOW, HIGH = Notice(0.0, 0, 0, 0, 0, 0.0), Notice(-1.5e300, *[2**62 - 1] * 4, -1.5e300)
WRITER = """
import sys
from pathlib import Path
from sloguard.plugins.board import Board, Notice
board = Board(Path(sys.argv[1]))
low, high = Notice(0.0, 0, 0, 0, 0, 0.0), Notice(-1.5e300, *[2**62 - 1] * 4, -1.5e300)
print("writing", flush=True)
while True:
    board.put(low)
    board.put(high)
"""


def test_a_notice_is_48_bytes():
    assert FORMAT.size == 48


def test_nothing_is_known_before_a_scheduler_has_begun(tmp_path: Path):
    assert Boards(tmp_path).read() is None
    assert Boards(tmp_path / "nowhere").read() is None


def test_what_is_put_is_read(tmp_path: Path):
    board, boards = Board(tmp_path), Boards(tmp_path)
    assert boards.read() == Notice()
    for notice in (Notice(12.5, 3, 2, 1, 99), Notice(13.5, 0, 0, 0, 2**40)):
        board.put(notice)
        assert boards.read() == notice


def test_schedulers_are_taken_together_also_those_that_come_later(tmp_path: Path):
    boards = Boards(tmp_path)
    Board(tmp_path, "one").put(Notice(5.0, 1, 2, 3, 4))
    assert boards.read() == Notice(5.0, 1, 2, 3, 4)
    Board(tmp_path, "two").put(Notice(4.0, 10, 20, 30, 40, 3.5))
    assert boards.read() == Notice(5.0, 11, 22, 33, 44, 3.5)


def test_a_file_that_is_just_being_made_is_left_for_later(tmp_path: Path):
    half = tmp_path / "half.board"
    half.touch()
    boards = Boards(tmp_path)
    assert boards.read() is None
    half.write_bytes(FORMAT.pack(1.0, 2, 3, 4, 5, 6.0))
    assert boards.read() == Notice(1.0, 2, 3, 4, 5, 6.0)


@contextmanager
def writer(directory: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"writing\n"
        yield
    finally:
        process.kill()
        process.communicate()


def test_another_process_never_reads_half_a_number(tmp_path: Path):
    boards = Boards(tmp_path)
    with writer(tmp_path):
        for _ in range(5_000):
            notice = boards.read()
            assert notice is not None
            assert notice.step_s in (LOW.step_s, HIGH.step_s)
            for name in ("running", "waiting_slo", "waiting_best_effort", "started"):
                assert getattr(notice, name) in (getattr(LOW, name), getattr(HIGH, name))
