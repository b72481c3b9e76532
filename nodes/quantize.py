"""Quantize Model: a MODEL that any loader made → the same with packed weights."""

from comfy_api.latest import io

from ..quant_core.config import QuantConfig
from ..quant_core.memory import model_nbytes, readable
from .host.quantized import quantized_model
from .report import shown
from .types import CATEGORY, QuantConfigSocket


class QuantFluxQuantize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxQuantize",
            display_name="Quantize Model",
            category=CATEGORY,
            description="Quantizes a model that is loaded already, by whichever loader: FLUX, SD3 and the other models "
            "that ComfyUI has. Its linear layers are packed one after the other; LoRAs on it stay on it.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model at 16 or 32 bit or fp8, from any loader. It stays as it is, for other nodes.",
                ),
                QuantConfigSocket.Input(
                    "config",
                    optional=True,
                    tooltip="From Quantization Config. Without one: nf4, or, if the model is quantized already, that.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with packed weights, an ordinary MODEL.")],
        )

    @classmethod
    def execute(cls, model, config: QuantConfig | None = None) -> io.NodeOutput:
        quantized = quantized_model(model, config)
        before, after = (model_nbytes(patcher.model.parameters())[0] for patcher in (model, quantized))
        figures = {"bytes_before": before, "bytes": after}
        if quantized is model:
            text = f"handed on as it is · {readable(after)}"
        else:
            text = f"{(config or QuantConfig()).describe()} · {readable(before)} → {readable(after)}"
        return io.NodeOutput(quantized, ui=shown([text], [figures]))
