"""Load Quantized Transformer: a FLUX file → MODEL."""

from comfy_api.latest import io

from ..quant_core.config import QuantConfig
from ..quant_core.source import flux_source
from .host.flux_model import diffusion_model, load_flux_model
from .host.folders import TRANSFORMERS, chosen, chosen_fingerprint, names
from .host.progress import progress_bar
from .report import loaded
from .types import CATEGORY, QuantConfigSocket


class QuantFluxLoadTransformer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxLoadTransformer",
            display_name="Load Quantized Transformer",
            category=CATEGORY,
            description="Reads FLUX and quantizes it layer by layer while it is read; a model that bitsandbytes packed "
            "already keeps its own quantization.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=names(TRANSFORMERS),
                    tooltip="A FLUX transformer: a .safetensors file in diffusion_models, an all-in-one file in "
                    "checkpoints, or a diffusers folder in diffusers or diffusion_models. 16-bit, fp8, or packed by "
                    "bitsandbytes.",
                ),
                QuantConfigSocket.Input(
                    "config",
                    optional=True,
                    tooltip="From Quantization Config. Without one: the model's own quantization, or nf4.",
                ),
                io.String.Input(
                    "hub_repo",
                    default="",
                    optional=True,
                    tooltip="A Hugging Face repository, owner/name or owner/name@revision: used instead of model_name.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The transformer, for every node that takes a MODEL: LoRA loaders, samplers, guiders."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, model_name: str | None, config: QuantConfig | None = None, hub_repo: str | None = ""
    ) -> tuple:
        return chosen_fingerprint(TRANSFORMERS, model_name, hub_repo)

    @classmethod
    def execute(cls, model_name: str, config: QuantConfig | None = None, hub_repo: str = "") -> io.NodeOutput:
        source = flux_source(chosen(TRANSFORMERS, model_name, hub_repo), config, progress_bar())
        model = load_flux_model(source)
        return io.NodeOutput(model, ui=loaded(source, diffusion_model(model)))
