"""How a model lies on the GPUs it is given: one value of the knob `layout` stands for three sizes of vLLM's.

tp4        every layer split over four GPUs                                        tensor parallelism
tp2-pp2    one half of the layers split over two GPUs, the other over two others   pipeline parallelism
tp2-dp2    two engines behind one address, each split over two GPUs                data parallelism
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sloguard.errors import SpecError
from sloguard.perf.model_shape import ModelShape
from sloguard.trial import Value

LAYOUT = "layout"
_SIZES = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "dp": "data_parallel_size"}
SIZES = frozenset(_SIZES.values())


@dataclass(frozen=True, slots=True)
class Layout:
    """GPUs that share a layer, stages of layers, engines."""

    tp: int = 1
    pp: int = 1
    dp: int = 1

    @staticmethod
    def named(name: Value) -> Layout:
        """The inverse of `str`."""
        return Layout(**{part[:2]: int(part[2:]) for part in str(name).split("-")})

    def __str__(self) -> str:
        return "-".join(f"{kind}{size}" for kind, size in asdict(self).items() if size > 1) or "tp1"

    @property
    def sizes(self) -> dict[str, Value]:
        """As arguments of vLLM; those of one are left out."""
        return {_SIZES[kind]: size for kind, size in asdict(self).items() if size > 1}


def layout_of(config: Mapping[str, Value], tp: int) -> Layout:
    """`tp` is for where the config has none."""
    return Layout.named(config[LAYOUT]) if LAYOUT in config else Layout(tp)


def layouts(gpus: int, model: ModelShape | None, *, pipeline: bool, data: bool) -> tuple[str, ...]:
    """Every way to use all of `gpus`, those first that split layers most; the first is what the default stands for.

    `pipeline` and `data` say what the engine offers beside tensor parallelism. vLLM splits attention heads evenly, and
    KV heads either evenly or by giving each to equally many GPUs. Raises SpecError where there is no way.
    """
    if model is None:
        fix = "Download the model first, or give --tensor-parallel."
        raise SpecError("--gpus", gpus, "the model's attention heads, which are to be split, are not known", fix)
    found = [
        Layout(tp, pp, gpus // tp // pp)
        for tp in range(gpus, 0, -1)
        if gpus % tp == 0 and model.heads % tp == 0 and max(model.kv_heads, tp) % min(model.kv_heads, tp) == 0
        for pp in range(1, min(gpus // tp, model.layers) + 1)
        if gpus // tp % pp == 0 and (pipeline or pp == 1) and (data or tp * pp == gpus)
    ]
    if not found:
        others = "there is no other way to use them here"
        problem = (
            f"{model.heads} attention heads and {model.kv_heads} KV heads of {model.name} can't be split over them"
        )
        raise SpecError("--gpus", gpus, f"{problem}, and {others}", "Give a divisor of the heads.")
    return tuple(map(str, found))
