"""The policy of a profile run covers chunks of many sizes at many depths, and serves everything."""

from __future__ import annotations

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.sched.job import Job
from sloguard.sched.kv import KvCache
from sloguard.sched.policy import Limits
from sloguard.sched.probing import Probing, van_der_corput
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import Replica


def test_the_sequence_covers_the_range_evenly_from_its_beginning():
    for n in (4, 16, 64):
        assert sorted(van_der_corput(i) for i in range(n)) == [i / n for i in range(n)]


def test_prompts_are_cut_at_many_sizes_and_depths_and_every_second_is_whole():
    seen: list[tuple[int, int]] = []

    class Watched(BatchTime):
        def seconds(self, batch):
            seen.extend(batch.chunks)
            return super().seconds(batch)

    kernel, ended = Kernel(), []
    replica = Replica(
        kernel,
        Probing(),
        Limits(max_num_seqs=8, max_num_batched_tokens=2048, max_model_len=2048),
        KvCache(1000),
        Watched((Piece(1e-3, 1e-5, 1e-5, 0.0, 0.0),)),
        lambda jobs, times_s: ended.extend(job.id for job in jobs if job.generated_tokens >= job.output_tokens),
    )
    for i in range(64):
        kernel.at(float(i), lambda i=i: replica.submit(Job(str(i), float(i), 1500, 2)))
    kernel.run()
    assert len(ended) == 64
    whole = [chunk for chunk in seen if chunk == (1500, 0)]
    sizes = {tokens.bit_length() for tokens, _ in seen}
    depths = {depth // 300 for tokens, depth in seen if tokens < 300}
    assert 32 <= len(whole) < 45
    assert sizes >= set(range(4, 12))
    assert depths == set(range(5))
