"""Who has seen which prefix: a bounded guess at the replicas' prefix caches, made from what was sent where."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

from sloguard.sched.job import Job

BLOCKS = 1 << 18  # 4 million tokens at 16 a block: the memory of some tens of GPUs


class PrefixMap:
    """The last replica that was sent each block of text, for the `blocks` blocks seen last.

    A block's key stands for all text up to its end, and heads of prompts are kept longer than their tails, so the known
    blocks of a prompt are always the first ones.
    """

    def __init__(self, blocks: int = BLOCKS) -> None:
        self._blocks = blocks
        self._last: OrderedDict[int, int] = OrderedDict()

    def find(self, job: Job) -> tuple[int, int] | None:
        """(replica, blocks) of the longest beginning of the job's shared prefix that was sent anywhere."""
        known = bisect_left(job.prefix_keys, True, key=lambda key: key not in self._last)
        return (self._last[job.prefix_keys[known - 1]], known) if known else None

    def sent(self, job: Job, replica: int) -> None:
        for key in reversed(job.prefix_keys):
            self._last[key] = replica
            self._last.move_to_end(key)
        while len(self._last) > self._blocks:
            self._last.popitem(last=False)


def block_keys(text: bytes, width: int) -> tuple[int, ...]:
    """Of the text's full blocks of `width` bytes: equal where a block and all text before it are. They mean nothing to
    another process.
    """
    keys: list[int] = []
    key = 0
    for start in range(0, len(text) - width + 1, width):
        key = hash((key, text[start : start + width]))
        keys.append(key)
    return tuple(keys)
