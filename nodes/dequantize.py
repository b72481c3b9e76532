"""Dequantize: packed weights → plain ones, for the stock nodes that need those."""

from comfy_api.latest import io

from ..quant_core.config import WEIGHT_DTYPES
from ..quant_core.errors import ConfigError
from ..quant_core.memory import model_nbytes, readable
from .host.dequantized import dequantized_clip, dequantized_model, has_packed_weights
from .report import shown
from .types import CATEGORY

AUTO = "auto"


class QuantFluxDequantize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxDequantize",
            display_name="Dequantize",
            category=CATEGORY,
            description="Makes an unquantized model of a quantized one, for merging, for the stock save nodes, and for "
            "LoRAs baked into the weights. What quantizing rounded away does not come back.",
            inputs=[
                io.Model.Input("model", optional=True, tooltip="A quantized transformer. Its LoRAs stay on it."),
                io.Clip.Input("clip", optional=True, tooltip="A quantized T5 with CLIP-L. CLIP-L stays as it is."),
                io.Combo.Input(
                    "dtype",
                    options=[AUTO, *WEIGHT_DTYPES],
                    default=AUTO,
                    tooltip="What the weights become. auto: what they were quantized from. FLUX can overflow in "
                    "float16; float32 takes twice the memory.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The transformer with plain weights; nothing if model is not connected."),
                io.Clip.Output(tooltip="The text encoders with plain weights; nothing if clip is not connected."),
            ],
        )

    @classmethod
    def execute(cls, dtype: str, model=None, clip=None) -> io.NodeOutput:
        if model is None and clip is None:
            raise ConfigError("There is nothing to dequantize: connect model, clip, or both.")
        if dtype != AUTO and dtype not in WEIGHT_DTYPES:
            # older hosts let any text through
            raise ConfigError(f"dtype is {dtype!r}. Use one of {', '.join([AUTO, *WEIGHT_DTYPES])}.")
        wanted = WEIGHT_DTYPES.get(dtype)
        plain_model = None if model is None else dequantized_model(model, wanted)
        plain_clip = None if clip is None else dequantized_clip(clip, wanted)
        parts = []
        if model is not None:
            parts.append(("model", model, plain_model))
        if clip is not None:
            parts.append(("clip", clip.patcher, plain_clip.patcher))
        text, figures = zip(*(_described(*part) for part in parts), strict=True)
        return io.NodeOutput(plain_model, plain_clip, ui=shown(text, figures))


def _described(name, before, after) -> tuple[str, dict]:
    """A line of text about one input, and its figures."""
    packed, plain = (model_nbytes(patcher.model.parameters())[0] for patcher in (before, after))
    figures = {"input": name, "bytes_before": packed, "bytes": plain}
    if not has_packed_weights(before):
        return f"{name} · not quantized, handed on as it is", figures
    return f"{name} · {readable(packed)} → {readable(plain)}", figures
