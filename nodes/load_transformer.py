"""Load Quantized Transformer: a FLUX file → MODEL."""

from comfy_api.latest import io

from ..quant_core.checkpoint import open_checkpoint
from ..quant_core.config import QuantConfig
from ..quant_core.quantize import flux_source
from .host.flux_model import diffusion_model, load_flux_model
from .host.folders import TRANSFORMERS, file_names, file_path, fingerprint
from .report import loaded
from .types import CATEGORY, QuantConfigSocket


class QuantFluxLoadTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxLoadTransformer",
            display_name="Load Quantized Transformer",
            category=CATEGORY,
            description="Reads a 16-bit FLUX file and quantizes it layer by layer while it is read.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=file_names(TRANSFORMERS),
                    tooltip="A FLUX transformer (.safetensors) in the diffusion_models folder.",
                ),
                QuantConfigSocket.Input(
                    "config", optional=True, tooltip="From Quantization Config. Without one: nf4, bfloat16 products."
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, config: QuantConfig | None = None):
        return fingerprint(TRANSFORMERS, model_name)

    @classmethod
    def execute(cls, model_name: str, config: QuantConfig | None = None) -> io.NodeOutput:
        checkpoint = open_checkpoint(file_path(TRANSFORMERS, model_name))
        source = flux_source(checkpoint, config or QuantConfig())
        model = load_flux_model(source)
        return io.NodeOutput(model, ui=loaded(source.config, diffusion_model(model)))
