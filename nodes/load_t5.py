"""Load Quantized T5: a T5 file and a CLIP-L file → CLIP."""

from comfy_api.latest import io

from ..quant_core.checkpoint import open_checkpoint
from ..quant_core.config import QuantConfig
from ..quant_core.identify import T5
from ..quant_core.source import clip_l_source, t5_source
from .host.folders import TEXT_ENCODERS, chosen_fingerprint, chosen_path, file_names, file_path, fingerprint
from .host.text_encoder import load_flux_clip
from .report import loaded
from .types import CATEGORY, QuantConfigSocket


class QuantFluxLoadT5(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = file_names(TEXT_ENCODERS)
        return io.Schema(
            node_id="QuantFluxLoadT5",
            display_name="Load Quantized T5",
            category=CATEGORY,
            description="Reads a 16-bit T5 and quantizes it layer by layer while it is read; CLIP-L stays as stored.",
            inputs=[
                io.Combo.Input("t5_name", options=names, tooltip="T5-XXL (.safetensors) in the text_encoders folder."),
                io.Combo.Input(
                    "clip_l_name", options=names, tooltip="CLIP-L (.safetensors) in the text_encoders folder."
                ),
                QuantConfigSocket.Input(
                    "config", optional=True, tooltip="From Quantization Config. Without one: nf4, bfloat16 products."
                ),
                io.String.Input(
                    "hub_repo",
                    default="",
                    optional=True,
                    tooltip="A Hugging Face repository, owner/name or owner/name@revision: used instead of t5_name.",
                ),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, t5_name: str, clip_l_name: str, config: QuantConfig | None = None, hub_repo: str = ""):
        return chosen_fingerprint(TEXT_ENCODERS, t5_name, hub_repo), fingerprint(TEXT_ENCODERS, clip_l_name)

    @classmethod
    def execute(
        cls, t5_name: str, clip_l_name: str, config: QuantConfig | None = None, hub_repo: str = ""
    ) -> io.NodeOutput:
        t5 = t5_source(open_checkpoint(chosen_path(TEXT_ENCODERS, t5_name, hub_repo, T5)), config or QuantConfig())
        clip_l = clip_l_source(open_checkpoint(file_path(TEXT_ENCODERS, clip_l_name)))
        clip = load_flux_clip(t5, clip_l)
        return io.NodeOutput(clip, ui=loaded(t5.config, clip.cond_stage_model.t5xxl.transformer))
