"""VRAM Plan: what a FLUX and a T5 will take on this card, before anything is loaded."""

from comfy_api.latest import io

from ..quant_core.config import QuantConfig
from ..quant_core.plan import plan, variants
from ..quant_core.report.plan_chart import parts, plan_chart
from ..quant_core.report.plan_text import plan_text
from .host.card import card, dtypes
from .host.folders import T5S, TRANSFORMERS, chosen, names
from .host.progress import progress_bar
from .report import image, preformatted
from .types import CATEGORY, QuantConfigSocket


class QuantFluxPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxPlan",
            display_name="VRAM Plan",
            category=CATEGORY,
            description="Reads the headers of a FLUX and a T5 and tells, for each precision, what they will take on "
            "this device while they work, what would be offloaded, and the best that fits. Loads nothing.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=names(TRANSFORMERS, hub=False),
                    tooltip="A FLUX transformer, as Load Quantized Transformer lists it. Of a packed one, only its own "
                    "precision is planned.",
                ),
                io.Combo.Input(
                    "t5_name",
                    options=names(T5S, hub=False),
                    tooltip="A T5-XXL, as Load Quantized T5 lists it. A packed one is planned at its own precision, "
                    "which config must not contradict.",
                ),
                QuantConfigSocket.Input(
                    "config",
                    optional=True,
                    tooltip="From Quantization Config: its blocksize, threshold, skipped modules and compute dtype "
                    "hold for all precisions.",
                ),
                io.Int.Input(
                    "width", default=1024, min=16, max=16384, step=16, tooltip="Width of a picture, in pixels."
                ),
                io.Int.Input(
                    "height", default=1024, min=16, max=16384, step=16, tooltip="Height of a picture, in pixels."
                ),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Pictures sampled together."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The tables as text, for Preview as Text or a file."),
                io.Image.Output(
                    display_name="chart", tooltip="The precisions as bars, for Preview Image or Save Image."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        # never equal to itself: free memory changes while the inputs do not
        return float("nan")

    @classmethod
    def execute(
        cls, model_name: str, t5_name: str, width: int, height: int, batch_size: int, config: QuantConfig | None = None
    ) -> io.NodeOutput:
        found = variants(chosen(TRANSFORMERS, model_name), chosen(T5S, t5_name), config, progress_bar())
        planned = plan(found, width, height, batch_size, card(width, height, batch_size), dtypes)
        report = plan_text(planned)
        return io.NodeOutput(
            preformatted(report),
            image(plan_chart(planned)),
            ui={"text": [report], "quantflux": [_figures(planned)]},
        )


def _figures(planned) -> dict:
    """The plan for programs that read the history, in bytes."""
    rows = [
        {
            "config": row.label,
            "asked": row.asked,
            "usable": row.usable,
            "fits": row.fits,
            "needed": row.needed,
            "resident": row.sampling.resident,
            "offloaded": row.sampling.offloaded,
            "moment": row.sampling.moment,
            "sampling": parts(row.sampling) | {"peak": row.sampling.peak},
            "encoding": parts(row.encoding) | {"peak": row.encoding.peak},
            "decoding": parts(row.decoding) | {"peak": row.decoding.peak},
        }
        for row in planned.rows
    ]
    memory = {"device": planned.card.name, "free": planned.card.free, "total": planned.card.total}
    return {"best": planned.best and planned.best.label, "rows": rows, "available": planned.card.available, **memory}
