"""Shapes of well-known models, so that a study can be planned before a model is downloaded.

Facts from the published config.json files. Columns: layers, hidden, intermediate, heads, kv_heads, head_dim, vocab,
max_position. The tests hold every row's derived parameter count against the published one.
"""

from __future__ import annotations

from dataclasses import replace

from sloguard.perf.model_shape import ModelShape

_LLAMA_8B = ModelShape("meta-llama/Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, 131072)
_LLAMA_70B = ModelShape("meta-llama/Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256, 131072)
_LLAMA_1B = ModelShape("meta-llama/Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, 131072, tied_embeddings=True)
_LLAMA_3B = ModelShape("meta-llama/Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, 131072, tied_embeddings=True)
_LLAMA2_7B = ModelShape("meta-llama/Llama-2-7b-hf", 32, 4096, 11008, 32, 32, 128, 32000, 4096)
_LLAMA2_13B = ModelShape("meta-llama/Llama-2-13b-hf", 40, 5120, 13824, 40, 40, 128, 32000, 4096)
_LLAMA2_70B = ModelShape("meta-llama/Llama-2-70b-hf", 80, 8192, 28672, 64, 8, 128, 32000, 4096)
_CODELLAMA = replace(_LLAMA2_7B, name="codellama/CodeLlama-7b-hf", vocab=32016, max_position=16384)
_CODELLAMA_13B = replace(_LLAMA2_13B, name="codellama/CodeLlama-13b-hf", vocab=32016, max_position=16384)
_CODELLAMA_34B = ModelShape("codellama/CodeLlama-34b-hf", 48, 8192, 22016, 64, 8, 128, 32000, 16384)
_QWEN2_HALF = ModelShape("Qwen/Qwen2-0.5B", 24, 896, 4864, 14, 2, 64, 151936, 131072, tied_embeddings=True)
_QWEN2_1B = ModelShape("Qwen/Qwen2-1.5B", 28, 1536, 8960, 12, 2, 128, 151936, 131072, tied_embeddings=True)
_QWEN2_3B = ModelShape("Qwen/Qwen2.5-3B", 36, 2048, 11008, 16, 2, 128, 151936, 32768, tied_embeddings=True)
_QWEN2_7B = ModelShape("Qwen/Qwen2-7B", 28, 3584, 18944, 28, 4, 128, 152064, 131072)
_QWEN2_14B = ModelShape("Qwen/Qwen2.5-14B", 48, 5120, 13824, 40, 8, 128, 152064, 131072)
_QWEN2_32B = ModelShape("Qwen/Qwen2.5-32B", 64, 5120, 27648, 40, 8, 128, 152064, 131072)
_QWEN2_72B = ModelShape("Qwen/Qwen2.5-72B", 80, 8192, 29568, 64, 8, 128, 152064, 131072)
_MISTRAL = ModelShape(
    "mistralai/Mistral-7B-v0.1", 32, 4096, 14336, 32, 8, 128, 32000, 32768, sliding_window=4096, sliding_layers=32
)
_MISTRAL_V3 = ModelShape("mistralai/Mistral-7B-v0.3", 32, 4096, 14336, 32, 8, 128, 32768, 32768)
_OPT_6B = ModelShape(
    "facebook/opt-6.7b", 32, 4096, 16384, 32, 32, 128, 50272, 2048,
    tied_embeddings=True, gated_mlp=False, learned_positions=True,
)  # fmt: skip
_MIXTRAL = ModelShape(
    "mistralai/Mixtral-8x7B-v0.1", 32, 4096, 14336, 32, 8, 128, 32000, 32768, experts=8, active_experts=2
)

MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _LLAMA_8B,
        replace(_LLAMA_8B, name="meta-llama/Llama-3.1-8B-Instruct"),
        replace(_LLAMA_8B, name="meta-llama/Meta-Llama-3-8B", max_position=8192),
        replace(_LLAMA_8B, name="meta-llama/Meta-Llama-3-8B-Instruct", max_position=8192),
        _LLAMA_70B,
        replace(_LLAMA_70B, name="meta-llama/Llama-3.1-70B-Instruct"),
        replace(_LLAMA_70B, name="meta-llama/Llama-3.3-70B-Instruct"),
        _LLAMA_1B,
        replace(_LLAMA_1B, name="meta-llama/Llama-3.2-1B-Instruct"),
        _LLAMA_3B,
        replace(_LLAMA_3B, name="meta-llama/Llama-3.2-3B-Instruct"),
        _LLAMA2_7B,
        replace(_LLAMA2_7B, name="meta-llama/Llama-2-7b-chat-hf"),
        _LLAMA2_13B,
        replace(_LLAMA2_13B, name="meta-llama/Llama-2-13b-chat-hf"),
        _LLAMA2_70B,
        replace(_LLAMA2_70B, name="meta-llama/Llama-2-70b-chat-hf"),
        _CODELLAMA,
        replace(_CODELLAMA, name="codellama/CodeLlama-7b-Instruct-hf"),
        _CODELLAMA_13B,
        replace(_CODELLAMA_13B, name="codellama/CodeLlama-13b-Instruct-hf"),
        _CODELLAMA_34B,
        replace(_CODELLAMA_34B, name="codellama/CodeLlama-34b-Instruct-hf"),
        _QWEN2_HALF,
        replace(_QWEN2_HALF, name="Qwen/Qwen2-0.5B-Instruct", max_position=32768),
        replace(_QWEN2_HALF, name="Qwen/Qwen2.5-0.5B", max_position=32768),
        replace(_QWEN2_HALF, name="Qwen/Qwen2.5-0.5B-Instruct", max_position=32768),
        _QWEN2_1B,
        replace(_QWEN2_1B, name="Qwen/Qwen2-1.5B-Instruct", max_position=32768),
        replace(_QWEN2_1B, name="Qwen/Qwen2.5-1.5B"),
        replace(_QWEN2_1B, name="Qwen/Qwen2.5-1.5B-Instruct", max_position=32768),
        _QWEN2_3B,
        replace(_QWEN2_3B, name="Qwen/Qwen2.5-3B-Instruct"),
        _QWEN2_7B,
        replace(_QWEN2_7B, name="Qwen/Qwen2-7B-Instruct", max_position=32768),
        replace(_QWEN2_7B, name="Qwen/Qwen2.5-7B"),
        replace(_QWEN2_7B, name="Qwen/Qwen2.5-7B-Instruct", max_position=32768),
        _QWEN2_14B,
        replace(_QWEN2_14B, name="Qwen/Qwen2.5-14B-Instruct", max_position=32768),
        _QWEN2_32B,
        replace(_QWEN2_32B, name="Qwen/Qwen2.5-32B-Instruct", max_position=32768),
        _QWEN2_72B,
        replace(_QWEN2_72B, name="Qwen/Qwen2.5-72B-Instruct", max_position=32768),
        ModelShape("Qwen/Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151936, 40960, tied_embeddings=True),
        ModelShape("Qwen/Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, 151936, 40960, tied_embeddings=True),
        ModelShape("Qwen/Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151936, 40960, tied_embeddings=True),
        ModelShape("Qwen/Qwen3-8B", 36, 4096, 12288, 32, 8, 128, 151936, 40960),
        ModelShape("Qwen/Qwen3-14B", 40, 5120, 17408, 40, 8, 128, 151936, 40960),
        ModelShape("Qwen/Qwen3-32B", 64, 5120, 25600, 64, 8, 128, 151936, 40960),
        ModelShape("Qwen/Qwen3-30B-A3B", 48, 2048, 768, 32, 4, 128, 151936, 40960, experts=128, active_experts=8),
        _MISTRAL,
        replace(_MISTRAL_V3, name="mistralai/Mistral-7B-Instruct-v0.2", vocab=32000),
        _MISTRAL_V3,
        replace(_MISTRAL_V3, name="mistralai/Mistral-7B-Instruct-v0.3"),
        _MIXTRAL,
        replace(_MIXTRAL, name="mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ModelShape(
            "mistralai/Mixtral-8x22B-v0.1", 56, 6144, 16384, 48, 8, 128, 32000, 65536, experts=8, active_experts=2
        ),
        _OPT_6B,
        replace(_OPT_6B, name="facebook/opt-13b", layers=40, hidden=5120, intermediate=20480, heads=40, kv_heads=40),
        replace(_OPT_6B, name="facebook/opt-30b", layers=48, hidden=7168, intermediate=28672, heads=56, kv_heads=56),
        ModelShape("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 22, 2048, 5632, 32, 4, 64, 32000, 2048),
        ModelShape("01-ai/Yi-34B", 60, 7168, 20480, 56, 8, 128, 64000, 4096),
        ModelShape("microsoft/phi-4", 40, 5120, 17920, 40, 10, 128, 100352, 16384),
    )
}
