"""Every mistake of a user: one clear line that names the field, the value and the fix; exit code 2; nothing touched."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sloguard.cli.app import main
from sloguard.study.log import StudyLog
from sloguard.study.spec import StudySpec
from sloguard.trial import Config, Refused, Trial

TUNE = "tune --engine sim --gpu A100-40GB --model Qwen/Qwen2-1.5B --slo-ttft-p99 500 --out {out}"
ENDPOINT = "tune --engine endpoint --model m --slo-ttft-p99 500 --out {out}"
BENCH = "bench --base-url http://127.0.0.1:9 --model m --request-rate 1 --num-requests 1"


@dataclass(frozen=True)
class Wrong:
    """A command line, and what its one line must say. `{tmp}` is a directory with the files of `files`."""

    what: str
    command: str
    says: tuple[str, ...]


WRONG = (
    Wrong("unknown command", "tuna", ("tuna",)),
    Wrong("unknown flag", f"{TUNE} --optimiser tpe", ("--optimiser",)),
    Wrong("missing model", "tune --slo-ttft-p99 500 --out {out}", ("--model",)),
    Wrong("unknown engine", f"{TUNE} --engine trt", ("--engine", "'trt'", "vllm")),
    Wrong("unknown optimizer", f"{TUNE} --optimizer magic", ("--optimizer", "'magic'", "tba-tpe")),
    Wrong("an optimizer class that isn't there", f"{TUNE} --optimizer sloguard.trial:Nope", ("Nope",)),
    Wrong("a missing extra", f"{TUNE} --optimizer constrained-bo", ("sloguard[bo]",)),
    Wrong("no trial", f"{TUNE} --budget 0", ("--budget", "0")),
    Wrong("a budget that is no number", f"{TUNE} --budget many", ("--budget", "many")),
    Wrong("a negative seed", f"{TUNE} --seed -1", ("--seed", "-1")),
    Wrong("no promise", "tune --engine sim --gpu H100 --model Qwen/Qwen2-1.5B --out {out}", ("--slo-",)),
    Wrong("a negative promise", f"{TUNE} --slo-itl-p99 -5", ("--slo-itl-p99", "-5")),
    Wrong("unknown objective", f"{TUNE} --objective profit", ("--objective", "'profit'", "goodput")),
    Wrong("unknown space", f"{TUNE} --space big", ("--space", "'big'", "paper8")),
    Wrong("a space file that isn't there", f"{TUNE} --space {{tmp}}/none.toml", ("none.toml",)),
    Wrong("a space file that isn't TOML", f"{TUNE} --space {{tmp}}/broken.toml", ("broken.toml",)),
    Wrong("an unknown knob in TOML", f"{TUNE} --space {{tmp}}/knob.toml", ("max_num_sequences",)),
    Wrong("an unknown field in TOML", f"{TUNE} --space {{tmp}}/field.toml", ("step",)),
    Wrong("an inverted range in TOML", f"{TUNE} --space {{tmp}}/range.toml", ("max_num_seqs",)),
    Wrong("a range beyond what a knob takes", f"{TUNE} --space {{tmp}}/share.toml", ("gpu_memory_utilization", "2.5")),
    Wrong("unknown workload", f"{TUNE} --workload night", ("--workload", "'night'", "interactive")),
    Wrong("a trace that isn't there", f"{TUNE} --workload {{tmp}}/none.csv", ("none.csv",)),
    Wrong("a trace with another header", f"{TUNE} --workload {{tmp}}/header.csv", ("header.csv",)),
    Wrong("a trace with a negative length", f"{TUNE} --workload {{tmp}}/length.csv", ("length.csv", "3", "-7")),
    Wrong("a trace that is binary", f"{TUNE} --workload {{tmp}}/binary.csv", ("binary.csv",)),
    Wrong("a negative rate", f"{TUNE} --request-rate -3", ("--request-rate", "-3")),
    Wrong("a rate that is no number", f"{TUNE} --request-rate nan", ("--request-rate", "nan")),
    Wrong("no requests", f"{TUNE} --num-requests 0", ("--num-requests", "0")),
    Wrong("a load without time", f"{TUNE} --load-seconds 0", ("--load-seconds", "0")),
    Wrong("no way to scale a trace", f"{TUNE} --trace-scaling warp", ("--trace-scaling", "'warp'", "stretch")),
    Wrong("an engine argument without a value", f"{TUNE} --engine-arg max_num_seqs", ("--engine-arg", "K=V")),
    Wrong("an engine argument twice", f"{TUNE} --engine-arg a=1 --engine-arg a=2", ("--engine-arg", "twice")),
    Wrong("a knob the simulator doesn't know", f"{TUNE} --engine-arg warp_speed=9", ("warp_speed",)),
    Wrong("a pinned value that can't be", f"{TUNE} --engine-arg max_num_seqs=-5", ("max_num_seqs", "-5")),
    Wrong("no GPU stated", TUNE.replace("--gpu A100-40GB", ""), ("--gpu",)),
    Wrong("unknown GPU", f"{TUNE} --gpu TPU-9", ("TPU-9", "A100-40GB")),
    Wrong("unknown model", f"{TUNE} --model nobody/nothing", ("nobody/nothing",)),
    Wrong("a model path that isn't there", f"{TUNE} --engine vllm --model ./no/such/model", ("no/such/model",)),
    Wrong("a Python without vLLM", f"{TUNE} --engine vllm --engine-python {sys.executable}", ("vllm",)),
    Wrong("a Python that isn't there", f"{TUNE} --engine vllm --engine-python /no/python", ("/no/python",)),
    Wrong("a Python that is another program", f"{TUNE} --engine vllm --engine-python /bin/true", ("no Python", "true")),
    Wrong("an optimizer of no module", f"{TUNE} --optimizer :X", ("--optimizer", "':X'", "package.module:Class")),
    Wrong("an optimizer that is a module", f"{TUNE} --optimizer os:path", ("--optimizer", "'os:path'", "no class")),
    Wrong("an engine argument that is empty", f"{TUNE} --engine-arg max_num_seqs=", ("--engine-arg", "no value")),
    Wrong("a secret as an engine argument", f"{TUNE} --engine-arg hf_token=hush", ("hf_token", "Export HF_TOKEN")),
    Wrong("a server for the simulator", f"{TUNE} --base-url http://127.0.0.1:9", ("--base-url", "simulated")),
    Wrong("a Python for the simulator", f"{TUNE} --engine-python python3", ("--engine-python", "simulated")),
    Wrong("a port of one's own", f"{TUNE} --engine vllm --engine-arg port=8000", ("--engine-arg", "port")),
    Wrong("no name for out", TUNE.replace("--out {out}", "--out="), ("--out", "empty")),
    Wrong("weights that can't fit", f"{TUNE} --model meta-llama/Llama-3.1-70B", ("--tensor-parallel", "A100-40GB")),
    Wrong("requests that can't fit", f"{TUNE} --workload {{tmp}}/long.csv", ("--workload", "1 of 2 requests")),
    Wrong("out is a file", TUNE.replace("{out}", "{tmp}/header.csv"), ("--out", "header.csv")),
    Wrong("out can't be written", TUNE.replace("{out}", "/proc/study"), ("/proc/study",)),
    Wrong("out holds a study", TUNE.replace("{out}", "{tmp}/study"), ("--out", "--resume")),
    Wrong("resumed with another seed", TUNE.replace("{out}", "{tmp}/study") + " --resume --seed 5", ("seed", "5")),
    Wrong("a log damaged in the middle", TUNE.replace("{out}", "{tmp}/damaged") + " --resume", ("line 2",)),
    Wrong("a header that lost its spec", TUNE.replace("{out}", "{tmp}/headless") + " --resume", ("line 1", "'spec'")),
    Wrong("a study of the future", TUNE.replace("{out}", "{tmp}/future") + " --resume", ("schema 99",)),
    Wrong("an endpoint without a URL", f"{TUNE} --engine endpoint", ("--base-url",)),
    Wrong("an endpoint that is not there", f"{ENDPOINT} --base-url http://127.0.0.1:9", ("127.0.0.1:9",)),
    Wrong("a GPU for an endpoint", f"{ENDPOINT} --base-url http://127.0.0.1:9 --gpu H100", ("--gpu", "H100")),
    Wrong("GPUs for an endpoint", f"{ENDPOINT} --base-url http://h --tensor-parallel 2", ("--tensor-parallel", "2")),
    Wrong("GPUs in two ways", f"{TUNE} --gpus 2 --tensor-parallel 1", ("--gpus", "2", "--tensor-parallel")),
    Wrong("GPUs in a third way", f"{TUNE} --gpus 2 --engine-arg data_parallel_size=2", ("--engine-arg", "--gpus")),
    Wrong("a layout without GPUs", f"{TUNE} --engine-arg layout=tp2", ("--engine-arg", "layout", "--gpus")),
    Wrong("a layout in TOML", f"{TUNE} --gpus 2 --space {{tmp}}/layout.toml", ("--space", "layout", "--gpus")),
    Wrong("a share that is none", f"{TUNE} --quality 90", ("--quality", "90")),
    Wrong("values that change answers", f"{TUNE} --space {{tmp}}/lossy.toml", ("kv_cache_dtype", "--allow-lossy")),
    Wrong("no GPUs", f"{TUNE} --gpus 0", ("--gpus", "0")),
    Wrong("weights that fit nowhere", f"{TUNE} --model meta-llama/Llama-3.1-70B --gpus 2", ("--gpus", "66 GiB")),
    Wrong("experts that can't be split", f"{TUNE} --model mistralai/Mixtral-8x7B-v0.1 --gpus 3", ("--gpus", "heads")),
    Wrong("GPUs to lay out for an endpoint", f"{ENDPOINT} --base-url http://h --gpus 2", ("--gpus", "2")),
    Wrong("an API key that isn't set", f"{TUNE} --api-key-env NO_SUCH_KEY", ("--api-key-env", "NO_SUCH_KEY")),
    Wrong("bench: nobody listens", BENCH, ("127.0.0.1:9",)),
    Wrong("bench: no URL", f"{BENCH} --base-url localhost", ("--base-url", "localhost")),
    Wrong("bench: a negative rate", f"{BENCH} --request-rate -1", ("--request-rate", "-1")),
    Wrong("bench: no requests", f"{BENCH} --num-requests 0", ("--num-requests", "0")),
    Wrong("bench: an SLO that isn't one", f"{BENCH} --slo speed=5", ("--slo", "speed")),
    Wrong("bench: an SLO without a number", f"{BENCH} --slo ttft=fast", ("--slo", "fast")),
    Wrong("bench: a negative SLO", f"{BENCH} --slo ttft=-1", ("--slo", "-1")),
    Wrong("bench: a result that can't be written", f"{BENCH} --json /proc/x/y.json", ("/proc/x",)),
    Wrong("bench: a result that is a directory", f"{BENCH} --json {{tmp}}", ("--json", "{tmp}")),
    Wrong("bench: a path beyond ASCII", f"{BENCH} --base-url http://h/ü€", ("http://h/ü€", "not the address")),
    Wrong("bench: a host with an empty label", f"{BENCH} --base-url http://a..b", ("http://a..b", "not the address")),
    Wrong("compare: nothing", "compare", ("PATH",)),
    Wrong("compare: no such directory", "compare {tmp}/none", ("{tmp}/none", "not there")),
    Wrong("compare: no study there", "compare {tmp}", ("line",)),
    Wrong("compare: no such format", "compare {tmp}/study --format html", ("--format", "'html'", "latex")),
    Wrong("compare: no such baseline", "compare {tmp}/study --baseline tpe", ("--baseline", "'tpe'", "'guided'")),
    Wrong("compare: nowhere to write", "compare {tmp}/study -o {tmp}/no/where", ("--output", "{tmp}/no/where")),
    Wrong("compare: not trials", "compare {tmp}/header.csv", ("header.csv, line 1", "JSON")),
    Wrong("compare: a damaged study", "compare {tmp}/damaged", ("line 1",)),
    Wrong("export: no study there", "export {tmp}", ("{tmp}", "no study")),
    Wrong("export: no such format", "export {tmp}/study --format xml", ("--format", "'xml'", "csv")),
    Wrong("export: no such trial", "export {tmp}/study --trial 9", ("--trial", "9")),
    Wrong("export: a trial of all", "export {tmp}/study --format csv --trial 1", ("--trial", "1", "vllm-yaml")),
    Wrong("export: nothing to deploy", "export {tmp}/study", ("keeps the promises", "--trial")),
    Wrong("export: a storage without a file", "export {tmp}/study --format optuna", ("--output", "study.db")),
    Wrong("export: a file that is there", "export {tmp}/study --format optuna -o {tmp}/knob.toml", ("knob.toml",)),
    Wrong("classify: no such log", "classify {tmp}/none.log", ("none.log",)),
    Wrong("classify: a directory", "classify {tmp}", ("{tmp}",)),
    Wrong("classify: no such phase", "classify {tmp}/header.csv --phase night", ("night",)),
)

FILES = {
    "broken.toml": "[max_num_seqs\ntype = ",
    "knob.toml": '[max_num_sequences]\ntype = "int"\nlow = 1\nhigh = 8\n',
    "field.toml": '[max_num_seqs]\ntype = "int"\nlow = 1\nhigh = 8\nstep = 2\n',
    "range.toml": '[max_num_seqs]\ntype = "int"\nlow = 9\nhigh = 8\n',
    "layout.toml": '[layout]\ntype = "categorical"\nchoices = ["tp2", "dp2"]\n',
    "lossy.toml": '[kv_cache_dtype]\ntype = "categorical"\nchoices = ["auto", "fp8"]\n',
    "share.toml": '[gpu_memory_utilization]\ntype = "float"\nlow = 0.5\nhigh = 2.5\n',
    "long.csv": "arrival_s,input_tokens,output_tokens\n0.5,10,10\n1.0,999999,10\n",
    "header.csv": "when,what\n1,2\n",
    "length.csv": "arrival_s,input_tokens,output_tokens\n0.5,10,10\n1.0,-7,10\n",
    "damaged/study.jsonl": '{"kind":"header","schema":1,"spec":{},"engine":{}}\n{"kind":"trial","num\n{"kind":0}\n',
    "headless/study.jsonl": '{"kind":"header","schema":1}\n',
    "future/study.jsonl": '{"kind":"header","schema":99}\n',
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 8)
    spec = StudySpec("sim", "Qwen/Qwen2-1.5B", "guided", 15, 0, {"ttft": 0.5}, gpu="A100-40GB")
    log = StudyLog(tmp_path / "study")
    with log.writer():
        log.append_header({"spec": spec.to_json(), "engine": {}})
        log.append(Trial(1, Config(), Config(), Refused("no room"), 0.0))
    return tmp_path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLOGUARD_GPU_VRAM_GB", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def contents(directory: Path) -> dict[str, bytes]:
    kept = (p for p in directory.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {str(p): p.read_bytes() for p in kept}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.what)
def test_a_mistake_is_one_clear_line(
    wrong: Wrong, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(files)
    command = wrong.command.format(tmp=files, out=files / "out")
    monkeypatch.setattr(sys, "argv", ["sloguard", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    errors = capsys.readouterr().err
    assert stop.value.code == 2, errors
    assert errors.startswith("sloguard: ")
    assert errors.count("\n") == 1, errors
    for said in wrong.says:
        assert said.format(tmp=files) in errors
    assert contents(files) == before
