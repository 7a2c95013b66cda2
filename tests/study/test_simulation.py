"""From flags to engines and requests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sloguard.errors import PolicyError, SpecError
from sloguard.perf.batch_time import Batch
from sloguard.request import End
from sloguard.sched.plan_check import Checked
from sloguard.slo import NO_SLO, StageSLO
from sloguard.study.choice import Choice, read_choices
from sloguard.study.sim_spec import Drafting, Pools, SimSpec
from sloguard.study.simulation import check, check_search, first_guess, machine_of, notes_on, requests_of, run

SPEC = SimSpec(
    policy=Choice("vllm", "vllm"),
    router=Choice("round-robin", "round-robin"),
    model="Qwen/Qwen2-1.5B",
    gpu="A100-40GB",
    scenario="chatbot",
    num_requests=40,
)
LATE = Choice("own_late:Late", "own_late:Late", (("plans", 10**9),))
OWN = """
from sloguard.sched.fcfs import Fcfs

class Late(Fcfs):
    def __init__(self, plans: int):
        self.plans = plans
        self.made = 0

    def plan(self, now_s, view):
        self.plans -= 1
        self.made += 1
        return super().plan(now_s, view) if self.plans else None
"""


def token_s(spec: SimSpec, rate: float = 20.0, seed: int = 0) -> list[list[float]]:
    timelines = run(spec, requests_of(spec, rate, seed).requests, seed).timelines
    assert all(t.end is End.COMPLETED for t in timelines)
    return [t.token_s.tolist() for t in timelines]


def test_another_rate_asks_the_same_faster():
    slow, fast = (requests_of(SPEC, rate, 0).requests for rate in (1.0, 4.0))
    assert [r.stages for r in slow] == [r.stages for r in fast]
    assert [r.arrival_s for r in slow] == pytest.approx([4 * r.arrival_s for r in fast])
    assert requests_of(SPEC, 1.0, 1).requests != slow


def test_a_slow_down_is_measured_in_steps_that_hold_the_whole_prompt():
    (stage,) = requests_of(SPEC, 1.0, 0).requests[0].stages
    zero_load_s = machine_of(SPEC).time.seconds(Batch(((stage.prompt_tokens, 0),)))
    assert stage.slo.ttft_s == pytest.approx(5 * zero_load_s)
    small = replace(SPEC, max_num_batched_tokens=512)
    assert requests_of(small, 1.0, 0).requests[0].stages[0].slo == stage.slo, "whatever the engine's batch limit"


def test_runs_are_functions_of_spec_rate_and_seed():
    noisy = replace(SPEC, noise=0.05, speculation=Drafting(0.6, 4, None))
    assert token_s(noisy) == token_s(noisy)
    assert token_s(noisy) != token_s(SPEC)


def test_several_engines_share_the_load():
    two = replace(SPEC, replicas=2)
    ran = run(two, requests_of(two, 20.0, 0).requests, 0, timed=True)
    assert [r.stats.steps > 0 for r in ran.replicas] == [True, True]
    assert all(r.stats.plan_s for r in ran.replicas)


def test_pools_prefill_here_and_decode_there():
    spec = SPEC.for_row("chatbot", Choice("distserve", "distserve"), SPEC.router, Pools(2, 1))
    assert (spec.gpus, spec.policy.text) == (3, "distserve 2:1")
    requests = requests_of(spec, 20.0, 0).requests
    ran = run(spec, requests, 0)
    assert len(ran.replicas) == 3
    assert [len(t.token_s) for t in ran.timelines] == [r.output_tokens for r in requests]


def test_options_of_a_policy_may_be_the_engines():
    policy = Choice("t", "vllm", (("max_num_batched_tokens", 512), ("lengths", "oracle")))
    row = SPEC.for_row("coder", policy, SPEC.router, None)
    assert (row.max_num_batched_tokens, row.lengths, row.policy.options) == (512, "oracle", ())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vllm:max_num_seqs=many", "max_num_seqs takes no 'many'"),
        ("vllm:max_num_batched_tokens=-5", "max_num_batched_tokens = -5: not a positive number"),
        ("vllm:lengths=foo", "lengths = 'foo': no such estimate. Choose one of quantile"),
        ("vllm:max_num_seqs=9000", "max_num_batched_tokens = 8192: vLLM refuses fewer than --max-num-seqs"),
    ],
)
def test_options_that_are_the_engines_are_refused_as_they_were_written(text, says):
    (policy,) = read_choices(text, "--policy")
    with pytest.raises(SpecError) as error:
        SPEC.for_row("coder", policy, SPEC.router, None)
    assert str(error.value).startswith(f"--policy = '{text}': {says}")
    with pytest.raises(SpecError, match="--noise"):
        replace(SPEC, noise=2.0).for_row("coder", replace(policy, options=(("lengths", "mean"),)), SPEC.router, None)


def test_options_that_there_are_name_those_of_the_engine_too():
    with pytest.raises(SpecError, match=r"It takes: max_num_batched_tokens, max_num_seqs, lengths\."):
        check(replace(SPEC, policy=Choice("vllm:foo=1", "vllm", (("foo", 1),))))


def test_only_a_policy_of_ones_own_is_watched(tmp_path, monkeypatch):
    (tmp_path / "own_late.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = Choice("own_late:Late", "own_late:Late", (("plans", 20),))
    check(replace(SPEC, num_requests=1))
    requests = requests_of(SPEC, 20.0, 0).requests
    with pytest.raises(PolicyError, match=r"^--policy own_late:Late: at \d+\.\d{3} s it returned None: return a Plan"):
        run(replace(SPEC, policy=own), requests, 0)
    watched, plain = (run(replace(SPEC, policy=p), requests, 0).replicas[0] for p in (LATE, SPEC.policy))
    assert (watched.stats, type(plain.policy).__name__) == (plain.stats, "Fcfs")
    assert isinstance(watched.policy, Checked)
    assert watched.policy.plans == 10**9 - watched.policy.made, "what the policy itself has stays reachable"


def test_no_request_is_longer_than_the_engine_takes():
    spec = replace(SPEC, scenario="reasoning", max_model_len=1024)
    assert all(r.prompt_tokens + r.output_tokens <= 1024 for r in requests_of(spec, 1.0, 0).requests)


def test_a_trace_is_taken_whole_and_what_is_too_long_is_counted(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,9000,5\n2,20,6\n")
    spec = replace(SPEC, scenario=None, trace=str(path), num_requests=None)
    asked = requests_of(spec, None, 0)
    assert ([r.output_tokens for r in asked.requests], asked.dropped) == ([5, 6], 1)


def test_lengths_alone_are_served_at_the_rate_that_is_asked(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("input_tokens,output_tokens\n100,20\n200,30\n9000,5\n")
    spec = replace(SPEC, scenario=None, trace=str(path), num_requests=10)
    check(spec, 2.0)
    check_search(replace(spec, scenario="coder"))
    assert first_guess(spec) > 0
    notes = " ".join(notes_on([spec], 2.0))
    assert "left out: 1 of" in notes
    assert "No request of" in notes
    assert "No request of" not in " ".join(notes_on([SPEC]))
    with pytest.raises(SpecError, match="--num-requests"):
        check_search(replace(spec, num_requests=None))
    with pytest.raises(SpecError, match=r"--trace = .*promises nothing, so every rate passes\. Add --scenario"):
        check_search(spec)


def test_one_promise_to_all_takes_the_place_of_the_scenario_s(tmp_path):
    slo = StageSLO(ttft_s=0.6, tpot_s=0.04)
    spec = replace(SPEC, scenario="reasoning", slo=slo, best_effort_share=0.3)
    asked = requests_of(spec, 2.0, 0).requests
    assert {(request.slo_class, stage.slo) for request in asked for stage in request.stages} == {
        ("reasoning", slo),
        ("best-effort", NO_SLO),
    }
    assert "Promised by --slo: TTFT 600 ms, TPOT 40 ms." in notes_on([spec])
    told = "Promised by reasoning: TTFT 3x that of an idle engine, TPOT 50 ms, then TTFT 100 ms, TPOT 100 ms."
    assert told in notes_on([replace(spec, slo=None)])
    path = tmp_path / "lengths.csv"
    path.write_text("input_tokens,output_tokens\n100,20\n")
    lengths = replace(SPEC, scenario=None, trace=str(path), num_requests=10, slo=slo)
    check_search(lengths)
    assert {request.stages[0].slo for request in requests_of(lengths, 2.0, 0).requests} == {slo}
    with pytest.raises(SpecError, match="Give one of --slo and --scenario"):
        replace(lengths, scenario="coder").check()


def test_promises_to_nobody_leave_no_rate_to_search():
    check_search(replace(SPEC, best_effort_share=0.5))
    with pytest.raises(SpecError, match=r"--best-effort-share = 1\.0: promises nothing"):
        check_search(replace(SPEC, best_effort_share=1.0))


@pytest.mark.parametrize("rows", ["0,10,5\n0,20,6\n", "5,10,5\n"])
def test_a_trace_that_offers_all_at_once_has_no_rate_to_search(rows, tmp_path):
    path = tmp_path / "burst.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    spec = replace(SPEC, scenario=None, trace=str(path), num_requests=None)
    check(spec)
    with pytest.raises(SpecError, match=r"--rate = 2\.0: .*all at once"):
        check(spec, 2.0)
    with pytest.raises(SpecError, match=r"--trace = .*no rate to search"):
        check_search(spec)


def test_an_engine_seats_no_more_than_a_step_holds_as_vllms_default():
    assert machine_of(replace(SPEC, max_num_batched_tokens=64)).settings.max_num_seqs == 64
    assert machine_of(SPEC).settings.max_num_seqs > 64


def test_a_drafting_model_takes_its_time():
    none, stated, guessed = (
        machine_of(replace(SPEC, speculation=s)).time.draft_step_s
        for s in (None, Drafting(0.7, 4, 0.001), Drafting(0.7, 4, None))
    )
    assert (none, stated) == (0.0, 0.001)
    assert 0 < guessed < machine_of(SPEC).time.seconds(Batch(decodes=1))


def test_a_wrong_batch_time_is_wrong_by_the_factor_for_policies_alone():
    wrong = replace(SPEC, batch_time_scale=1.4, learn_batch_time=False)
    replica = run(wrong, requests_of(wrong, 20.0, 0).requests, 0).replicas[0]
    batch = Batch(((300, 20),), decodes=4, kv_tokens=900)
    assert replica.predicted is not None
    assert replica.predicted.seconds(batch) == pytest.approx(1.4 * replica.batch_time.seconds(batch))
    assert token_s(wrong) == token_s(SPEC), "this policy does not look at it"


@pytest.mark.parametrize("scenario", ["chatbot", "coder", "tool-calling"])
def test_the_first_guess_is_a_rate_that_can_be_served(scenario):
    spec = replace(SPEC, scenario=scenario, num_requests=200)
    rate = first_guess(spec)
    timelines = run(spec, requests_of(spec, rate, 0).requests, 0).timelines
    assert timelines[-1].due_s == pytest.approx(200 / rate)
    assert max(t.last_s for t in timelines) < 1.5 * timelines[-1].due_s + 60


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "no/such-model"}, "--model"),
        ({"gpu": "A100"}, "--gpu"),
        (
            {"gpu": "T4", "model": "meta-llama/Llama-3.1-8B"},
            "its weights alone take 14.96 GiB a GPU on 1 x T4, of 13.26",
        ),
        ({"max_num_batched_tokens": 10**6}, "1000000 tokens and 256 sequences, graphs and workspaces take"),
        ({"max_num_batched_tokens": 155000, "max_model_len": 32768, "gpu": "T4"}, "can't hold one sequence of 32768"),
        ({"tensor_parallel": 5}, "--tensor-parallel"),
        ({"max_model_len": 10**6}, "--max-model-len"),
        ({"policy": Choice("x", "x")}, "--policy.*distserve.*vllm"),
        ({"router": Choice("x", "x")}, "--router.*round-robin"),
        ({"trace": "none.csv"}, "--trace"),
    ],
)
def test_what_cannot_be_built_is_the_users_to_mend(changes, says):
    with pytest.raises(SpecError, match=says):
        check(replace(SPEC, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"scenario": None},
        {"num_requests": 0},
        {"num_requests": 10_000_001},
        {"replicas": 0},
        {"replicas": 1025},
        {"stale_s": 1e-15},
        {"pools": Pools(1000, 25)},
        {"max_num_batched_tokens": 64, "max_num_seqs": 65},
        {"tensor_parallel": 0},
        {"max_num_batched_tokens": 0},
        {"best_effort_share": 1.5},
        {"noise": -0.1},
        {"noise": float("nan")},
        {"stale_s": -1.0},
        {"batch_time_scale": 0.0},
        {"link_bytes_s": 0.0},
        {"lengths": "crystal ball"},
        {"trace": "t.csv", "best_effort_share": 0.5},
    ],
)
def test_figures_out_of_range_are_refused(changes):
    with pytest.raises(SpecError):
        replace(SPEC, **changes).check()
