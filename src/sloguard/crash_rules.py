"""What a line of an engine's log says about why the engine died: one table, most telling row first.

Written from the messages of vLLM 0.4-0.33, PyTorch (CUDA, ROCm, NCCL), Triton, huggingface_hub and the kernel; a row
names a family of messages by its stable words, never a whole sentence. Patterns are searched in the lower-cased
message, without its log prefix. Laid out by hand: pattern, sample, hint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum

OOM, CUDA, TIMEOUT, STARTUP = "oom", "cuda_error", "timeout", "startup_failure"
BY_PHASE = ""  # startup_failure while starting, other under load


class Weight(IntEnum):
    """How much a line explains. The heaviest line decides; of equals the earliest, because failures spread."""

    WRAPPER = 0  # says only that something died elsewhere
    AFTERMATH = 1  # may be a cause, mostly the echo of another process's death; exceptions without a row weigh this
    FAMILY = 2  # an error class whose cause is clear, its detail not
    ROOT = 3  # names the cause


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. `sample` is a message that this row decides (tested); `hint` tells the user what to change."""

    weight: Weight
    category: str
    cause: str
    pattern: str
    sample: str
    hint: str
    environment: bool = False
    startup_only: bool = False  # under load the words mean nothing in particular
    compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compiled", re.compile(self.pattern))


ROOT, FAMILY, AFTERMATH, WRAPPER = Weight.ROOT, Weight.FAMILY, Weight.AFTERMATH, Weight.WRAPPER

MEMORY = (
    Rule(ROOT, OOM, "kv_cache_too_small",
         r"no available memory for the cache blocks|kv cache is needed|available kv cache memory"
         r"|tokens that can be stored in (the )?kv cache|less than requested memory for kv|(not enough"
         r"|insufficient).{0,40}(kv|cache) ?(cache|blocks)|cannot auto-fit max_model_len"
         r"|exceeds available mamba cache blocks|kv cache memory.{0,60}(too small|exceed)",
         "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
         "Raise --gpu-memory-utilization or lower --max-model-len, so that one full-length request fits the KV "
         "cache."),
    Rule(ROOT, OOM, "gpu_memory",
         r"less than desired (gpu|cpu|xpu|device) memory utilization|less than the engine's budget"
         r"|exceed the desired gpu memory utilization",
         "ValueError: Free memory on device (3.2/4.0 GiB) on startup is less than desired GPU memory utilization "
         "(0.9)",
         "Lower --gpu-memory-utilization below the share of memory that is free, or stop what else uses the "
         "device."),
    Rule(ROOT, OOM, "host_memory",
         r"cannot allocate memory|std::bad_alloc|^(numpy\S*)?memoryerror|can't allocate memory|oom-?kill"
         r"|out of memory: killed|running low on memory|ray\.exceptions\.outofmemoryerror|cuda_?host_?alloc",
         "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
         "Free host memory, raise the container's limit, or lower --swap-space, --cpu-offload-gb or "
         "--tensor-parallel-size."),
    Rule(ROOT, OOM, "gpu_memory",
         r"\b(cuda|hip|xpu|npu|gpu|hbm|device|nccl|driver)\w*( error)?:?( ran)? out of memory|outofmemoryerror"
         r"|(cuda|hip)_?error_?(memory_?allocation|out_?of_?memory)|(cublas|cudnn|hipblas)\w*_alloc_failed"
         r"|(ub_?)?ur_result_error_out_of_\w+memory|resource_?exhausted.{0,80}memory"
         r"|out of memory\. tried to allocate",
         "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 50.00 MiB. GPU 0 has a total capacity of "
         "23.56 GiB",
         "Lower --gpu-memory-utilization, --max-num-seqs or --max-num-batched-tokens, or add GPUs."),
)  # fmt: skip

DEVICE = (
    Rule(ROOT, CUDA, "no_kernel_image",
         r"no kernel image is available|device kernel image is invalid|unsupported toolchain|(cuda"
         r"|hip)error(nokernelimage|nobinaryforgpu|invaliddevicefunction)|invalid device function"
         r"|device function not found",
         "RuntimeError: CUDA error: no kernel image is available for execution on the device",
         "Install a build of vLLM and PyTorch made for this GPU's compute capability.", environment=True),
    Rule(ROOT, CUDA, "gpu_driver",
         r"driver version is insufficient|system not yet initialized|no cuda-capable device|cuda_error_no_device"
         r"|cuda unknown error|forward compatibility was attempted|all cuda-capable devices are busy"
         r"|invalid device ordinal|cuda_error_system_(driver|not)|error 80[0-9]:|driver/library version mismatch",
         "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
         "Repair the GPU driver or the visible devices (nvidia-smi, CUDA_VISIBLE_DEVICES) "
         "before starting again.", environment=True),
    Rule(ROOT, CUDA, "gpu_hardware",
         r"uncorrectable (ecc|nvlink)|fallen off the bus|\bxid\b.{0,30}\d+|hardware stack error|gpu is lost"
         r"|gpu reset",
         "RuntimeError: CUDA error: uncorrectable ECC error encountered",
         "Take the GPU out of service and check it (nvidia-smi -q, dmesg).", environment=True),
    Rule(ROOT, CUDA, "illegal_access",
         r"illegal memory access|misaligned address|illegal (instruction|address)|memory access fault by gpu"
         r"|invalid program counter|unspecified launch failure|device-side assert|vectorized_gather_kernel"
         r"|indexkernel\.cu|block: \[.{0,80}assertion|hsa_status_error",
         "RuntimeError: CUDA error: an illegal memory access was encountered",
         "Retry with --enforce-eager and another attention backend (--attention-backend); if it repeats, report "
         "it to vLLM."),
    Rule(ROOT, STARTUP, "multiprocessing",
         r"re-initialize (cuda|xpu|hip|\w+) in forked subprocess|finished its bootstrapping phase",
         "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, use "
         "'spawn'",
         "Set VLLM_WORKER_MULTIPROC_METHOD=spawn and guard the caller with `if __name__ == "
         "'__main__'`.", environment=True),
    Rule(ROOT, CUDA, "gpu_runtime",
         r"\b(cuda|cudart|cuda driver|cuda runtime|hip|nvrtc|xpu|npu|acl"
         r"|curesult)\s?error\b(?!.{0,20}out of memory)|cudaerror\w|\bcuda_error_\w|hiperror\w|acceleratorerror"
         r"|cuda call failed|(cublas|cublaslt|cudnn|cusolver|cusparse|cufft|curand|hipblas|rocblas|miopen)"
         r"_?status_\w|(cublas|cudnn|cutlass|miopen) error|cutlass.{0,40}(error internal|failed)"
         r"|unhandled (cuda|hip) error"
         r"|cudagraph.{0,40}capture.{0,30}(error|invalidated)|operation not permitted when stream is"
         r"|ur_result_error|flashinfer.{0,60}launch.{0,20}fail|too many resources requested for launch",
         "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
         "Retry with --enforce-eager and a plain --dtype and --kv-cache-dtype; if it repeats, check the driver "
         "and report it."),
    Rule(ROOT, STARTUP, "no_gpu",
         r"found no nvidia driver|no cuda gpus are available|no (hip|xpu) (gpus|devices) are available"
         r"|failed to infer device type|torch not compiled with cuda|nvidia driver on your system is too old"
         r"|nvml\w*error|nvml shared library|can't initialize nvml|no gpus? (found|detected|available)"
         r"|device string must not be empty|could not select device driver|torch\.cuda\.is_available\(\) (is"
         r"|returned) false",
         "RuntimeError: Found no NVIDIA driver on your system.",
         "Make the GPU visible to the process (driver, --gpus all, CUDA_VISIBLE_DEVICES) or "
         "install the CPU build of vLLM.", environment=True),
)  # fmt: skip

TIMEOUTS = (
    Rule(ROOT, TIMEOUT, "network",
         r"timed out after \d+ seconds waiting for clients|(client|server) socket has timed out"
         r"|rendezvous.{0,60}tim(ed out|eout)|wait timeout after \d+ ?ms|store.{0,60}timed? ?out"
         r"|connectfullmesh.{0,80}tim(ed out|eout)",
         "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
         "Check that every node reaches the first one (address, firewall, NCCL_SOCKET_IFNAME, "
         "GLOO_SOCKET_IFNAME).", environment=True),
    Rule(ROOT, TIMEOUT, "collective_timeout",
         r"watchdog caught collective|collective operation timeout|timeout at nccl work|(nccl|gloo|hccl"
         r"|rccl).{0,80}tim(ed out|eout)|monitoredbarrier|barrier (departure )?timed out|watchdog got stuck"
         r"|heartbeat.{0,40}timeout|ranks timed out during",
         "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE) ran for "
         "600086 ms",
         "Look for a worker that stopped first; try --disable-custom-all-reduce or NCCL_P2P_DISABLE=1 and check "
         "the links."),
    Rule(ROOT, TIMEOUT, "hang",
         r"engine iteration timed out|rpc call to .{0,60}timed out|(execute_model|sample_tokens"
         r"|executing model)\S* .{0,40}timed out|timed out waiting for (new )?engine"
         r"|did not receive response from front-end|(engine|server|worker)\S* .{0,60}(did not|not|failed to) (start"
         r"|become ready|become healthy|respond|be ready|come up)\S* (within|in|after) \d|timed out during"
         r"|rpc.{0,30}(timeout|timed out)|timed out waiting for.{0,60}(worker|engine|server|process|start)",
         "TimeoutError: RPC call to sample_tokens timed out.",
         "The engine stopped answering: lower the load per step (--max-num-batched-tokens, --max-num-seqs), try "
         "--enforce-eager, or allow more time."),
    Rule(ROOT, TIMEOUT, "ray_resources",
         r"cannot provide a placement group|placement group.{0,60}timed? ?out",
         "ValueError: Cannot provide a placement group of 4 GPUs within 1800 seconds. See `ray status`.",
         "Lower --tensor-parallel-size or --pipeline-parallel-size to the GPUs the Ray cluster has free, or free "
         "some."),
)  # fmt: skip

ENVIRONMENT = (
    Rule(ROOT, STARTUP, "port_in_use",
         r"address already in use|eaddrinuse|winerror 10048|only one usage of each socket address"
         r"|port \S+ (is )?(already )?(in use|occupied|taken|unavailable)",
         "OSError: [Errno 98] Address already in use",
         "Choose another --port, or stop the process that holds it.", environment=True),
    Rule(ROOT, STARTUP, "disk_full",
         r"no space left on device|errno 28|disk quota exceeded|not enough (free )?disk space|disk is full",
         "OSError: [Errno 28] No space left on device",
         "Free disk space (or raise --shm-size for /dev/shm), or move HF_HOME and "
         "VLLM_CACHE_ROOT to a larger disk.", environment=True),
    Rule(ROOT, BY_PHASE, "network",
         r"max retries exceeded|newconnectionerror|connecttimeout|readtimeout|name or service not known"
         r"|name resolution|no route to host|network is unreachable|failed to establish a new connection"
         r"|couldn't connect to 'https|proxyerror|sslerror|certificate_?verify_?failed"
         r"|trying to locate the file(s)? on the hub|nodename nor servname|(429|50[0-9]) (client|server) error"
         r"|cannot connect to (host|proxy)|connecterror|hf.{0,20}request.{0,20}failed|httpsconnectionpool"
         r"|remotedisconnected|incompleteread|connection broken|getaddrinfo|dns resolution",
         "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries "
         "exceeded",
         "Check DNS, proxy and firewall, or download the model first and set HF_HUB_OFFLINE=1.", environment=True),
    Rule(ROOT, BY_PHASE, "network",
         r"(nccl|rccl|hccl)\w* ?(error|failure)?\b.{0,60}(unhandled system error|remote process|remote error"
         r"|system error|internal error|invalid usage|invalid argument)|unhandled system error|nccl(systemerror"
         r"|remoteerror|internalerror)|nccl warn.{0,40}(net|connect|socket|bootstrap)|gloo.{0,80}(connect|address"
         r"|interface)|could not find any running ray|failed to connect to (gcs|ray)|ibv_\w+ failed"
         r"|unable to find address for|every node should have a unique ip",
         "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
         "Check the links between GPUs and nodes with NCCL_DEBUG=INFO: interfaces, "
         "peer-to-peer access, --shm-size.", environment=True),
    Rule(ROOT, STARTUP, "model_unavailable",
         r"(40[134]) client error|gated repo|gatedrepo|repositorynotfound|repository not found|revisionnotfound"
         r"|repo(sitory)? id(s)? must|is not a valid model identifier|is not a local folder|invalid repository id"
         r"|access to model .{0,200}is restricted|does not appear to have (a|any) file|entrynotfound"
         r"|localentrynotfound|cannot find any model weights|safetensorerror|deserializing header|(can't|cannot"
         r"|unable to|failed to|couldn't) load (the )?(tokenizer|config\w*|model|weights|processor)"
         r"|cannot find the requested file|no such file or directory: .{0,200}(safetensors|config\.json"
         r"|\.bin|\.gguf|token\w*|model|param|snapshot|hub)|weight files referenced in index"
         r"|offline mode is enabled|not find (a )?model|model .{0,120}(does not exist|not found)"
         r"|pytorchstreamreader|invalid load key|unpicklingerror|magic number|checkpoint.{0,40}(corrupt|incomplete"
         r"|truncated)|could not detect config format|couldn't find .{0,120}on the hub|path .{0,200} does not exist"
         r"|hfvalidationerror",
         "OSError: meta/llama is not a local folder and is not a valid model identifier listed on "
         "'https://huggingface.co'",
         "Check --model, --revision and HF_TOKEN, and that the files are complete (delete and "
         "download them again).", environment=True),
    Rule(ROOT, STARTUP, "weights_mismatch",
         r"there is no module or parameter named|weights? (were|was|is) not initialized|size mismatch for"
         r"|param_data\.shape == loaded_weight\.shape|loaded_weight|attempted to load weight",
         "ValueError: Following weights were not initialized from checkpoint: {'model.layers.0.mlp.gate.weight'}",
         "Use a checkpoint that fits this architecture, --quantization and --load-format, or "
         "another version of vLLM.", environment=True),
    Rule(ROOT, STARTUP, "missing_package",
         r"modulenotfounderror|importerror|undefined symbol|cannot open shared object|no module named"
         r"|packagenotfounderror|dll load failed|(please|try|via|with|run) .{0,40}pip3? install|(is"
         r"|are) not installed|requires? .{0,60}to be installed|version `?glibc\w*_"
         r"|operator \w+::\w+ does not exist|numpy\.dtype size changed|was compiled using numpy 1"
         r"|has no attribute '(_C|_moe_C)'|'_opnamespace' '\w+' object has no attribute",
         "ImportError: vllm/_C.abi3.so: undefined symbol: _ZN3c105ErrorC2E",
         "Install the missing package, or reinstall vLLM and PyTorch in versions built for "
         "each other.", environment=True),
    Rule(ROOT, STARTUP, "toolchain",
         r"failed to find c compiler|could not find nvcc|nvcc fatal|cuda_home|nvcc.{0,30}not found"
         r"|python\.h: no such file|ninja.{0,40}(not found|failed|required|exit)|cannot find -lcuda"
         r"|no such file or directory: '(gcc|g\+\+|nvcc|ninja|cc|ptxas)",
         "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
         "Install a C compiler, the Python headers and the CUDA toolkit, or start with "
         "--enforce-eager.", environment=True),
    Rule(ROOT, STARTUP, "limits",
         r"too many open files|errno 24|can't start new thread|resource temporarily unavailable: fork"
         r"|pthread_create failed",
         "OSError: [Errno 24] Too many open files",
         "Raise the limits of files and processes (ulimit -n, ulimit -u).", environment=True),
    Rule(ROOT, STARTUP, "permission",
         r"permissionerror|permission denied|operation not permitted: |read-only file system|errno 13",
         "PermissionError: [Errno 13] Permission denied: '/root/.cache/huggingface'",
         "Give the process write access to its cache (HF_HOME, VLLM_CACHE_ROOT) and read "
         "access to the model.", environment=True),
    Rule(ROOT, STARTUP, "memory_profiling",
         r"error in memory profiling",
         "AssertionError: Error in memory profiling. Initial free memory 20.1 GiB, current free memory 21.3 GiB.",
         "Another process freed or took GPU memory while vLLM measured it: give vLLM the GPU "
         "alone and start again.", environment=True),
    Rule(ROOT, STARTUP, "shared_memory",
         r"bus error|sigbus|insufficient shared memory|/dev/shm",
         "Fatal Python error: Bus error",
         "Give the container more shared memory (--shm-size or --ipc=host).", environment=True),
)  # fmt: skip

CONFIG = (
    Rule(ROOT, STARTUP, "config_invalid",
         r"max_model_len \(?[\d.]+\)? is greater than|greater than the (derived|model's) max"
         r"|vllm_allow_long_max_model_len|max_model_len.{0,80}(exceed|larger than|greater than|longer than)",
         "Value error, User-specified max_model_len (100000) is greater than the derived max_model_len (4096).",
         "Lower --max-model-len to what the model supports."),
    Rule(ROOT, STARTUP, "config_invalid",
         r"max_num_batched_tokens.{0,60}(smaller than|must be|greater|less than|larger)|max_num_seqs.{0,60}(must be"
         r"|greater|larger)|chunked mm input disabled",
         "Value error, max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (256).",
         "Raise --max-num-batched-tokens (at least --max-num-seqs; at least --max-model-len without chunked "
         "prefill)."),
    Rule(ROOT, STARTUP, "config_invalid",
         r"compute capability|not supported for the current gpu|minimum capability"
         r"|not supported in this architecture|(not|isn't) (yet )?(supported|available|implemented) (on|for|by|in"
         r"|with) (this|the|your|current|cpu|gpu|rocm|hip|cuda|xpu|tpu|nvidia|amd|intel|sm_?\d)[^.]{0,60}|(only"
         r"|requires?) .{0,60}(sm_?\d\d|hopper|blackwell|ampere|ada|mi300|gfx)",
         "ValueError: The quantization method awq is not supported for the current GPU. Minimum capability: 75.",
         "Choose a --dtype, --quantization, --kv-cache-dtype or --attention-backend that this device supports."),
    Rule(ROOT, STARTUP, "config_invalid",
         r"divisible by|number of required gpus exceeds|world size.{0,80}(larger|greater|exceed|must)|(tensor"
         r"|pipeline|data)[ _-]?parallel[ _-]?(size|ism).{0,120}(larger|greater|exceed|cannot|must|more than"
         r"|not supported|available)|not enough gpus|don't have enough gpus|total number of available gpus"
         r"|number of tensor parallelism|duplicate gpu detected|device_id is out of range"
         r"|device_ids provides|current node has no",
         "ValueError: Total number of attention heads (52) must be divisible by tensor parallel size (8).",
         "Choose --tensor-parallel-size and --pipeline-parallel-size that divide the model and fit the GPUs."),
    Rule(ROOT, STARTUP, "config_invalid",
         r"model architectures? .{0,400}(not supported|failed to be inspected)|has no vllm implementation|(not"
         r"|doesn't) recognize this architecture|unsupported (model|architecture)|model type .{0,80}(not|unknown)"
         r"|has no support for|keyerror: '\w*(forcausallm|forconditionalgeneration)",
         "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
         "Use a newer vLLM and transformers that know this architecture, or --model-impl "
         "transformers.", environment=True),
    Rule(ROOT, STARTUP, "config_invalid",
         r"trust_remote_code|trust-remote-code|contains custom code which must be executed"
         r"|requires you to execute the",
         "ValueError: Loading foo requires you to execute the configuration file; set the option "
         "`trust_remote_code=True`.",
         "Read the model's code and pass --trust-remote-code, or choose another model.", environment=True),
    Rule(ROOT, STARTUP, "config_invalid",
         r"cannot find the config file for|quantization method|unknown quantization"
         r"|quantization.{0,100}(not match|mismatch|not supported|unsupported|invalid)|quant_method"
         r"|(gptq|awq|marlin|fp8|bitsandbytes|gguf|nvfp4"
         r"|mxfp4).{0,100}(not supported|unsupported|does not|doesn't|must|only)",
         "Value error, Unknown quantization method: foobar. Must be one of ['awq', 'fp8', 'gptq'].",
         "Choose a --quantization, --dtype and --kv-cache-dtype that the checkpoint and this version of vLLM "
         "support."),
    Rule(ROOT, STARTUP, "config_invalid",
         r"error: (unrecognized arguments?|argument \S+|the following arguments|ambiguous option"
         r"|one of the arguments)|invalid choice:|(args|config|llm)\S*__init__\(\) got an unexpected keyword"
         r"|unexpected_keyword_argument|no such option|argumenttypeerror",
         "api_server.py: error: unrecognized arguments: --no-such-flag",
         "Correct the flag: `vllm serve --help=all` lists what this version takes."),
    Rule(ROOT, STARTUP, "kernel_resources",
         r"outofresources|out of resource: |shared memory.{0,60}hardware limit|register spill",
         "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 114688, Hardware limit: "
         "101376",
         "The kernel does not fit this GPU: choose another --attention-backend, --block-size or --kv-cache-dtype."),
    Rule(FAMILY, STARTUP, "config_invalid",
         r"value error, |assertion failed, |input should be",
         "Value error, Expecting value: line 1 column 1 (char 0) [type=value_error]",
         "Correct the named option: vLLM rejected the configuration before it loaded the model."),
    Rule(FAMILY, STARTUP, "compile_failed",
         r"backendcompilerfailed|inductorerror|compilationerror|torch\._dynamo|torch\._inductor"
         r"|error building extension|returned non-zero exit status|torch\.compile.{0,40}fail|ptxas.{0,20}(error"
         r"|fatal|failed)|loweringexception|pass ?manager|mlir|(jit|kernel) (compilation|build) failed"
         r"|compilation failed",
         "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised: CalledProcessError",
         "Start with --enforce-eager, or clear vLLM's and torch's compile caches."),
    Rule(FAMILY, STARTUP, "config_invalid",
         r"^\S*(valueerror|notimplementederror|assertionerror|runtimeerror|vllmvalidationerror"
         r"|argumenterror)\W(?!.{0,200}(tensor|shape|dimension|stride)).{0,200}?(not (yet |currently )?(supported"
         r"|compatible|implemented|allowed|valid|available)|unsupported|doe?s(n't| not) support|only supports?"
         r"|only supported|incompatible|can(not|'t) be (used|set|combined|enabled|larger|greater|other)|must be"
         r"|must (not|have|match|set|specify|provide)|should be|conflicts?|invalid|unknown|unrecognized|(is"
         r"|are) required|requires|please (set|use|specify|provide|disable|enable|increase|decrease|reduce|select"
         r"|choose)|larger than|greater than|smaller than|exceeds?|cannot exceed|mutually exclusive|at least one"
         r"|has been removed|no longer supported|too (large|small|long|many)|doesn't exist|is not a)",
         "NotImplementedError: Concurrent Partial Prefill is not supported.",
         "Change the option that the message names: this combination is not supported.", startup_only=True),
    Rule(FAMILY, TIMEOUT, "hang",
         r"timed out|timeouterror|timeout (error|exceeded|expired|reached)",
         "asyncio.exceptions.TimeoutError: deadline passed",
         "The engine stopped answering in time: lower the load per step, try --enforce-eager, or allow more time."),
)  # fmt: skip

CONSEQUENCES = (
    Rule(AFTERMATH, STARTUP, "config_invalid",
         r"validation errors? for \w*(config|args)",  # pydantic's headline; the reason stands below it
         "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
         "Correct the configuration: vLLM rejected it before it loaded the model."),
    Rule(AFTERMATH, BY_PHASE, "engine_dead",
         r"worker exit type|potential root causes",
         "WARNING: A worker died. Worker exit type: SYSTEM_ERROR. There are some potential root causes. (1) SIGKILL",
         "A Ray worker vanished: look into its own log on its node, and in dmesg for the OOM killer."),
    Rule(AFTERMATH, BY_PHASE, "killed",
         r"died \(-9\)|exit ?code:? ?(-9|137)\b|signal 9\b|sigkill|^killed$|line \d+:\s+\d+ killed\b|signal: killed",
         "ERROR: Worker proc VllmWorker-0 died (exit code: -9)",
         "Something killed the process (SIGKILL): look for the kernel's OOM killer in dmesg and at the "
         "container's limit."),
    Rule(AFTERMATH, BY_PHASE, "native_crash",
         r"segmentation fault|segfault|sigsegv|sigabrt|sigill|fatal python error|core dumped"
         r"|terminate called after throwing|double free|corrupted size|exit ?code:? ?(-11|-6|139|134)\b"
         r"|stack smashing",
         "!!!!!!! Segfault encountered !!!!!!!",
         "Native code crashed: reinstall matching builds of PyTorch, CUDA and vLLM, try --enforce-eager, and "
         "report it."),
    Rule(AFTERMATH, BY_PHASE, "network",
         r"connection (reset|refused|closed|aborted|error)|connectionreseterror|connectionrefusederror|broken ?pipe"
         r"|recvvalue failed|remote peer|distnetworkerror|eoferror|connectionerror|failed to recv|socket closed"
         r"|nccl error|ncclerror",
         "ConnectionResetError: [Errno 104] Connection reset by peer",
         "Check the network between the processes, and whether another worker or node died "
         "first.", environment=True),
    Rule(WRAPPER, STARTUP, "unknown",
         r"engine core initialization failed|(engine ?core|worker ?proc|engine process"
         r"|workers?)\S* (failed to start|initialization failed|failed to initialize)|failed core proc"
         r"|application startup failed|frontend process failed during|started engine process died"
         r"|failed to start(up)?\.? see|ray workers have not started|worker failed with error"
         r"|unable to start (the )?(vllm|engine|server)",
         "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
         "The log does not show the root cause: look above this line, or start again with "
         "VLLM_LOGGING_LEVEL=DEBUG."),
    Rule(WRAPPER, BY_PHASE, "engine_dead",
         r"engine\w*deaderror|(core|worker|engine|actor|proc|process)\S*( \S+){0,3} (died|exited"
         r"|terminated)( \S+)? ?(unexpectedly|abnormally|with)|background loop (has|is)|engine (is|loop"
         r"|process) .{0,20}(dead|died|not running|errored)|already dead|background task failed"
         r"|enginecore (encountered|hit)|(actordied|raytask|actorunavailable)error|actor (is )?(died|dead)"
         r"|worker (exit type|crashed|died)|a worker (died|was killed)|fatal signal from worker|died, exit code"
         r"|engine ?core died|output.?handler failed|executor failed|runtimeerror: cancelled$|is dead\b"
         r"|output handler.{0,20}(died|exception)",
         "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above).",
         "The log does not show why the engine died: look above this line, in the worker's output and in dmesg."),
)  # fmt: skip

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (*MEMORY, *TIMEOUTS, *DEVICE, *ENVIRONMENT, *CONFIG, *CONSEQUENCES), key=lambda rule: rule.weight, reverse=True
    )
)  # stable: within a weight the order above is the precedence


def match(message: str) -> Rule | None:
    """The row that decides one message (its log prefix already removed), or None."""
    lowered = message.lower()
    return next((rule for rule in RULES if rule.compiled.search(lowered)), None)
