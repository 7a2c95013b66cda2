"""Makes the demo models: real architectures with random weights, for runs that need an engine but no download.

    python tools/make_demo_model.py demo-tiny [demo-slo ...] [--out models]

Each is a Qwen2 checkpoint in the Hugging Face layout: config, 16-bit safetensors, a byte-level BPE tokenizer of 1,024
tokens and a chat template. Needs numpy only; the same name gives the same bytes on every machine with the same numpy.
An existing model is left alone, and one is never seen half written: it is built aside and renamed into place.
"""

from __future__ import annotations

import argparse
import json
import shutil
import string
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCAB_TOKENS = 1024
MAX_POSITION_TOKENS = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the last ids, so that every id below 1,000 is ordinary text
WEIGHT_STD = 0.02  # Qwen2's own initializer_range
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    dtype: str = "bfloat16"


MODELS = {
    # Starts fast: start-up, crash and protocol tests. Not bfloat16: on CPUs with AMX, vLLM 0.32's attention is then an
    # illegal instruction until a matrix product has asked the kernel for AMX, and these matrices are too small to.
    "demo-tiny": Shape(128, 256, 2, 4, 2, "float16"),
    "demo-slo": Shape(384, 1024, 32, 6, 2),  # a step's time depends on its tokens, as on a GPU
    "demo-slo-24": Shape(384, 1024, 24, 6, 2),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--out", type=Path, default=Path("models"))
    arguments = parser.parse_args()
    for name in arguments.names:
        print(make(name, arguments.out / name))
    return 0


def make(name: str, directory: Path) -> Path:
    """The model `name` at `directory`, made there unless it exists."""
    if directory.is_dir():
        return directory
    building = directory.with_name(directory.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    shape = MODELS[name]
    _write_json(building / "config.json", _config(shape))
    _write_json(building / "generation_config.json", {"eos_token_id": _id(SPECIAL[2]), "pad_token_id": _id(SPECIAL[0])})
    _write_json(building / "tokenizer.json", _tokenizer())
    _write_json(building / "tokenizer_config.json", _tokenizer_config())
    _write_safetensors(building / "model.safetensors", _weights(name, shape), shape.dtype)
    building.rename(directory)
    return directory


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": VOCAB_TOKENS,
        "max_position_embeddings": MAX_POSITION_TOKENS,
        "hidden_act": "silu",
        "initializer_range": WEIGHT_STD,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": shape.dtype,
        "bos_token_id": None,
        "eos_token_id": _id(SPECIAL[2]),
        "pad_token_id": _id(SPECIAL[0]),
    }


def _weights(name: str, shape: Shape) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a Qwen2 checkpoint with tied embeddings, [out, in] as PyTorch stores a linear layer."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))

    def random(*size: int) -> NDArray[np.float32]:
        return rng.standard_normal(size, dtype=np.float32) * np.float32(WEIGHT_STD)

    def ones() -> NDArray[np.float32]:
        return np.ones(shape.hidden, dtype=np.float32)

    kv_width = shape.hidden // shape.heads * shape.kv_heads
    tensors = {"model.embed_tokens.weight": random(VOCAB_TOKENS, shape.hidden), "model.norm.weight": ones()}
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        for projection, width in (("q", shape.hidden), ("k", kv_width), ("v", kv_width)):
            tensors[f"{layer}.self_attn.{projection}_proj.weight"] = random(width, shape.hidden)
            tensors[f"{layer}.self_attn.{projection}_proj.bias"] = random(width)
        tensors[f"{layer}.self_attn.o_proj.weight"] = random(shape.hidden, shape.hidden)
        tensors[f"{layer}.mlp.gate_proj.weight"] = random(shape.intermediate, shape.hidden)
        tensors[f"{layer}.mlp.up_proj.weight"] = random(shape.intermediate, shape.hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = random(shape.hidden, shape.intermediate)
        tensors[f"{layer}.input_layernorm.weight"] = ones()
        tensors[f"{layer}.post_attention_layernorm.weight"] = ones()
    return tensors


def _write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]], dtype: str) -> None:
    """The safetensors layout: header length, JSON header, raw data."""
    short = {"bfloat16": "BF16", "float16": "F16"}[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + 2 * tensor.size
        header[name] = {"dtype": short, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            upper_half = (tensor.view(np.uint32) >> 16).astype("<u2")  # bfloat16 is a float32 cut in half
            file.write((upper_half if dtype == "bfloat16" else tensor.astype("<f2")).tobytes())


def _byte_letters() -> list[str]:
    """One printable character per byte value, as in byte-level BPE: printable bytes stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _merges() -> list[tuple[str, str]]:
    """[765] word starts, pairs of letters, pairs of digits, until the vocabulary is full. No corpus, no training."""
    letters, space = string.ascii_lowercase, _byte_letters()[ord(" ")]
    pairs = [(space, a) for a in letters] + [(a, b) for a in letters for b in letters]
    pairs += [(a, b) for a in string.digits for b in string.digits]
    return pairs[: VOCAB_TOKENS - 256 - len(SPECIAL)]


def _id(special: str) -> int:
    return VOCAB_TOKENS - len(SPECIAL) + SPECIAL.index(special)


def _tokenizer() -> dict[str, object]:
    """The `tokenizer.json` of the Hugging Face tokenizers library."""
    merges = _merges()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": _id(text), "content": text, **flags} for text in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(_byte_letters() + ["".join(pair) for pair in merges])},
            "merges": [list(pair) for pair in merges],
        },
    }


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITION_TOKENS,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
