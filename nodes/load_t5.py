"""Load Quantized T5: a T5 file and a CLIP-L file → CLIP."""

from comfy_api.latest import io

from ..quant_core.config import QuantConfig
from ..quant_core.source import clip_l_source, t5_source
from .host.folders import CLIP_LS, T5S, chosen, chosen_fingerprint, names
from .host.text_encoder import load_flux_clip
from .report import loaded
from .types import CATEGORY, QuantConfigSocket


class QuantFluxLoadT5(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxLoadT5",
            display_name="Load Quantized T5",
            category=CATEGORY,
            description="Reads T5 and quantizes it layer by layer while it is read; one that bitsandbytes packed "
            "already keeps its own quantization. CLIP-L stays as stored.",
            inputs=[
                io.Combo.Input(
                    "t5_name",
                    options=names(T5S),
                    tooltip="T5-XXL: a .safetensors file in text_encoders, an all-in-one file in checkpoints, or a "
                    "transformers folder in text_encoders or diffusers. 16-bit, fp8, or packed by bitsandbytes.",
                ),
                io.Combo.Input(
                    "clip_l_name",
                    options=names(CLIP_LS, hub=False),
                    tooltip="CLIP-L: a .safetensors file in text_encoders, an all-in-one file in checkpoints, or a "
                    "transformers folder.",
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
                    tooltip="A Hugging Face repository, owner/name or owner/name@revision: used instead of t5_name.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    tooltip="Both text encoders of FLUX, for CLIP Text Encode and other nodes that take a CLIP."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        t5_name: str | None,
        clip_l_name: str | None,
        config: QuantConfig | None = None,
        hub_repo: str | None = "",
    ) -> tuple:
        return chosen_fingerprint(T5S, t5_name, hub_repo), chosen_fingerprint(CLIP_LS, clip_l_name)

    @classmethod
    def execute(
        cls, t5_name: str, clip_l_name: str, config: QuantConfig | None = None, hub_repo: str = ""
    ) -> io.NodeOutput:
        t5 = t5_source(chosen(T5S, t5_name, hub_repo), config)
        clip_l = clip_l_source(chosen(CLIP_LS, clip_l_name))
        clip = load_flux_clip(t5, clip_l)
        return io.NodeOutput(clip, ui=loaded(t5, clip.cond_stage_model.t5xxl.transformer))
