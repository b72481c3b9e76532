"""Save Quantized Model: a MODEL, a CLIP or both → files in the output folder."""

import os

from comfy_api.latest import io

from ..quant_core.errors import ConfigError
from ..quant_core.export import save_diffusers_folder, save_single_file
from ..quant_core.memory import readable
from .host.progress import progress_bar
from .host.saving import TEXT_ENCODERS, TRANSFORMERS, new_path, text_encoder_to_save, transformer_to_save
from .report import shown
from .types import CATEGORY

SINGLE_FILE, FOLDER = "single file", "diffusers folder"
# format -> (what writes it, what its name ends in)
FORMATS = {SINGLE_FILE: (save_single_file, ".safetensors"), FOLDER: (save_diffusers_folder, "")}


class QuantFluxSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxSave",
            display_name="Save Quantized Model",
            category=CATEGORY,
            description="Writes a quantized transformer, a quantized T5, or both to the output folder, packed as they "
            "are: loading them again quantizes nothing. CLIP-L is not saved, since it is never quantized.",
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="From Load Quantized Transformer, or from Quantize Model (FLUX.1 only), without LoRAs on "
                    "it.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="From Load Quantized T5, without LoRAs on it. Its T5 is saved; its CLIP-L is not.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="quantflux",
                    tooltip="Beginning of the name, perhaps after folders: transformers are saved in "
                    "output/diffusion_models, T5 in output/clip, where the loaders find them. Nothing is overwritten.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=SINGLE_FILE,
                    tooltip="single file: for these loaders, bit-equal. diffusers folder: for diffusers and "
                    "transformers too; what they cannot hold packed is at 16 bit there (T5's wo).",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, filename_prefix: str, format: str, model=None, clip=None) -> io.NodeOutput:
        if model is None and clip is None:
            raise ConfigError("There is nothing to save: connect model, clip, or both.")
        if format not in FORMATS:
            # older hosts let any text through
            raise ConfigError(f"format is {format!r}. Use one of {', '.join(FORMATS)}.")
        # all is checked before anything is written
        wanted = []
        if model is not None:
            wanted.append((TRANSFORMERS, *transformer_to_save(model)))
        if clip is not None:
            wanted.append((TEXT_ENCODERS, *text_encoder_to_save(clip)))
        save, suffix = FORMATS[format]
        paths = [new_path(folder, filename_prefix, suffix) for folder, *_ in wanted]
        text, figures = [], []
        for (path, name), (_, tensors, provenance) in zip(paths, wanted, strict=True):
            nbytes = save(path, tensors, provenance, progress=progress_bar())
            text.append(f"{name} · {readable(nbytes)}")
            figures.append({"path": name, "file": os.path.basename(path), "bytes": nbytes})
        return io.NodeOutput(ui=shown(text, figures))
