"""What a start of vLLM does with a GPU's memory, per tensor-parallel rank, in bytes.

    visible    = VRAM - DRIVER                     "total capacity" in CUDA's own messages
    free       = visible - CONTEXT - others
    budget     = gpu_memory_utilization*visible
    kv         = budget - weights - runtime - activations - graphs

`activations` is the peak of vLLM's profiling run: the widest point of a layer over max_num_batched_tokens tokens, or
the sampler over max_num_seqs rows of logits, whichever is larger. Since 0.21 vLLM also estimates the graphs before it
sizes the KV cache. What is then still allocated outside the budget can run out: `slack` is the room it has.

The constants are orders of magnitude from public vLLM logs and issues, not measurements of one machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from sloguard.perf.gpus import GIB, MIB, Gpu
from sloguard.perf.model_shape import ModelShape
from sloguard.sim.settings import KV_BYTES, UNQUANTISED, Settings

DRIVER_BYTES = 600 * MIB  # A100-40GB: 40960 MiB by nvidia-smi, 39.39 GiB to CUDA; H100: 81559 MiB and 79.1 GiB
CONTEXT_BYTES = 450 * MIB  # CUDA context and libraries of the engine's own process, before its first tensor
RUNTIME_BYTES = 250 * MIB  # workspaces (cuBLAS, attention)
NCCL_BYTES = 750 * MIB  # communicators and all-reduce buffers of a rank with peers
LOGIT_BYTES = 12  # of one logit while sampling: bf16, float32, and a sorted or softmaxed copy
GRAPH_LAYER_BYTES = MIB // 2  # of one layer in one captured batch size, full and piecewise graph together
FP8_WEIGHT_BITS = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank."""

    visible: int
    free: int
    budget: int
    weights: int
    runtime: int
    activations: int
    graphs: int
    kv_block: int
    kv_longest: int  # one sequence of max_model_len tokens

    @property
    def kv(self) -> int:
        return self.budget - self.weights - self.runtime - self.activations - self.graphs

    @property
    def slack(self) -> int:
        return self.free - self.budget

    @property
    def kv_blocks(self) -> int:
        """Usable ones: vLLM keeps one block as a placeholder."""
        return self.kv // self.kv_block - 1


def memory_of(settings: Settings, model: ModelShape, gpu: Gpu, tp: int, others_bytes: int) -> Memory:
    """`others_bytes` is what other processes hold of the GPU."""
    visible = gpu.vram_bytes - DRIVER_BYTES
    kv_bytes = KV_BYTES[settings.kv_cache_dtype]
    return Memory(
        visible=visible,
        free=visible - CONTEXT_BYTES - others_bytes,
        budget=int(settings.gpu_memory_utilization * visible),
        weights=weight_bytes(settings, model) // tp,
        runtime=RUNTIME_BYTES + (NCCL_BYTES if tp > 1 else 0),
        activations=_activation_bytes(settings, model, tp),
        graphs=len(settings.graph_sizes) * model.layers * GRAPH_LAYER_BYTES,
        kv_block=settings.block_size * model.kv_bytes_per_token_per_rank(tp, kv_bytes),
        kv_longest=model.kv_bytes(settings.max_model_len, tp, kv_bytes, settings.max_num_batched_tokens),
    )


def weight_bytes(settings: Settings, model: ModelShape) -> int:
    """Of all ranks. `fp8` quantises linear layers of a 16-bit checkpoint while loading; embeddings stay."""
    if settings.quantization in UNQUANTISED or model.weight_bits is not None:
        return model.weight_bytes
    linear = model.parameters - model.embedding_parameters
    return model.weight_bytes - linear * (model.dtype_bytes - FP8_WEIGHT_BITS // 8)


def _activation_bytes(settings: Settings, model: ModelShape, tp: int) -> int:
    """Gate and up projections, their product, and three copies of the residual stream; or the sampler's logits."""
    width = 3 * model.intermediate * model.active_experts // tp + 3 * model.hidden
    layer = settings.max_num_batched_tokens * width * model.dtype_bytes
    sampler = settings.max_num_seqs * model.vocab * LOGIT_BYTES
    return max(layer, sampler)


def gib(size: int) -> str:
    """As vLLM and PyTorch print it: two digits, GiB."""
    return f"{size / GIB:.2f}"
