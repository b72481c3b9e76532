"""Load Quantized Transformer: a FLUX file → MODEL."""

from comfy_api.latest import io

from ..quant_core.checkpoint import open_checkpoint
from ..quant_core.config import QuantConfig
from ..quant_core.identify import FLUX
from ..quant_core.source import flux_source
from .host.flux_model import diffusion_model, load_flux_model
from .host.folders import TRANSFORMERS, chosen_fingerprint, chosen_path, file_names
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
                io.String.Input(
                    "hub_repo",
                    default="",
                    optional=True,
                    tooltip="A Hugging Face repository, owner/name or owner/name@revision: used instead of model_name.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, config: QuantConfig | None = None, hub_repo: str = ""):
        return chosen_fingerprint(TRANSFORMERS, model_name, hub_repo)

    @classmethod
    def execute(cls, model_name: str, config: QuantConfig | None = None, hub_repo: str = "") -> io.NodeOutput:
        checkpoint = open_checkpoint(chosen_path(TRANSFORMERS, model_name, hub_repo, FLUX))
        source = flux_source(checkpoint, config or QuantConfig())
        model = load_flux_model(source)
        return io.NodeOutput(model, ui=loaded(source.config, diffusion_model(model)))
