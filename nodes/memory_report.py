"""Memory Report: what a MODEL, a CLIP and a VAE take, and where."""

from comfy_api.latest import io

from ..quant_core.report import memory_chart, memory_text
from .host.memory_state import held_by, process_memory
from .report import image, preformatted
from .types import CATEGORY


class QuantFluxMemoryReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxMemoryReport",
            display_name="Memory Report",
            category=CATEGORY,
            description="Bytes of each component by kind of tensor, now and at 16 bit, and where they are; with what "
            "ComfyUI and the process hold. Measured at each run; LoRAs count from their first use on.",
            inputs=[
                io.Model.Input("model", optional=True, tooltip="Any MODEL, quantized or not."),
                io.Clip.Input("clip", optional=True, tooltip="Any CLIP, quantized or not."),
                io.Vae.Input("vae", optional=True, tooltip="Any VAE."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The tables as text, for Preview as Text or a file."),
                io.Image.Output(
                    display_name="chart", tooltip="The components as bars, for Preview Image or Save Image."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        # never equal to itself: memory changes while the inputs do not
        return float("nan")

    @classmethod
    def execute(cls, model=None, clip=None, vae=None) -> io.NodeOutput:
        held, process = held_by(model, clip, vae), process_memory(model, clip, vae)
        report = memory_text(held, process)
        chart = image(memory_chart(held))
        figures = {
            "bytes": sum(one.nbytes for one in held),
            "bytes_16bit": sum(one.nbytes_16bit for one in held),
            "held": [vars(one) for one in held],
            "process": process,
        }
        return io.NodeOutput(preformatted(report), chart, ui={"text": [report], "quantflux": [figures]})
