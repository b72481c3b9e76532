"""Quantization Config: how weights are to be packed."""

from comfy_api.latest import io

from ..quant_core.config import (
    BLOCKSIZES,
    COMPUTE_DTYPES,
    PRECISIONS,
    QuantConfig,
    named_compute_dtype,
    parse_skip_modules,
    split_budget,
)
from .types import CATEGORY, QuantConfigSocket


class QuantFluxConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxConfig",
            display_name="Quantization Config",
            category=CATEGORY,
            description="How the weights of a transformer or a text encoder are quantized by bitsandbytes.",
            inputs=[
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="nf4",
                    tooltip="nf4 and fp4: 4 bit (nf4 is closer to 16 bit). int8: LLM.int8(), 8 bit. "
                    "none: 16 bit as stored, for comparing.",
                ),
                io.Combo.Input(
                    "compute_dtype",
                    options=["auto", *COMPUTE_DTYPES],
                    default="auto",
                    tooltip="What products are computed in. auto: bfloat16 where the device has it. float8: 4-bit "
                    "transformers, on Ada cards or newer: a little less exact, and faster; all else in bfloat16.",
                ),
                io.Boolean.Input(
                    "double_quant",
                    default=False,
                    tooltip="4 bit only: quantize the block scales as well. Saves about 8 % more memory.",
                ),
                io.Combo.Input(
                    "blocksize",
                    options=list(BLOCKSIZES),
                    default=64,
                    tooltip="4 bit only: weights that share one scale. Smaller: closer to 16 bit, more memory.",
                ),
                io.Float.Input(
                    "int8_threshold",
                    default=6.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="int8 only: input columns with values this large are multiplied in 16 bit. 0: none.",
                ),
                io.String.Input(
                    "skip_modules",
                    default="",
                    multiline=True,
                    tooltip="Modules to leave at 16 bit, one per line or separated by commas: native or diffusers "
                    "names, their last part, or globs such as single_blocks.*.linear2. For a transformer also "
                    "auto:<GiB>, such as auto:7.5: its layers get precisions of their own, within that size in all.",
                ),
            ],
            outputs=[
                QuantConfigSocket.Output(
                    display_name="config",
                    tooltip="For the loaders, Quantize Model and VRAM Plan; one config may serve several of them.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        precision: str,
        compute_dtype: str,
        double_quant: bool,
        blocksize: int,
        int8_threshold: float,
        skip_modules: str,
    ) -> io.NodeOutput:
        names, budget_gib = split_budget(parse_skip_modules(skip_modules))
        return io.NodeOutput(
            QuantConfig(
                precision=precision,
                compute_dtype=named_compute_dtype(compute_dtype),  # older hosts let any text through
                double_quant=double_quant,
                blocksize=blocksize,
                int8_threshold=int8_threshold,
                skip_modules=names,
                budget_gib=budget_gib,
            )
        )
