"""Quality Report: how far a quantized MODEL is from its reference."""

import math

from comfy_api.latest import io

from ..quant_core.report import quality_chart, quality_csv, quality_text
from .host.quality import compared
from .host.trajectories import SCHEDULERS, same_sampling
from .report import image, preformatted
from .types import CATEGORY


class QuantFluxQuality(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxQuality",
            display_name="Quality Report",
            category=CATEGORY,
            description="Samples with both models from the same noise, by Euler's method, and compares them: velocity "
            "and drift step by step, the weights layer by layer. Takes three sampling runs; nothing is decoded.",
            inputs=[
                io.Model.Input("reference", tooltip="The model to measure against, such as the same file at 16 bit."),
                io.Model.Input("model", tooltip="The quantized model. LoRAs may be on either."),
                io.Conditioning.Input("positive", tooltip="The prompt, with guidance and whatever else is on it."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size and batch to measure at."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of each sampling run."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Of the noise that both start from."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The negative prompt. Counts only where cfg is not 1."
                ),
                io.Float.Input(
                    "cfg", optional=True, default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Classifier-free guidance. FLUX is used at 1, with its own guidance on the prompt.",
                ),
                io.Combo.Input(
                    "scheduler", optional=True, options=list(SCHEDULERS), default="simple",
                    tooltip="Which noise levels the steps have; those of the reference serve both.",
                ),
                io.Boolean.Input(
                    "layer_outputs", optional=True, default=False,
                    tooltip="Also compare what each layer makes of the inputs that it gets in the reference. Loads "
                    "both models at once; those that do not fit run from the main memory, slowly.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report", tooltip="The errors by step and of the worst layers, for Preview as Text."
                ),
                io.Image.Output(
                    display_name="chart", tooltip="Errors by step and by layer, for Preview Image or Save Image."
                ),
                io.String.Output(display_name="csv", tooltip="Every number as one table, for a file or a spreadsheet."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, reference, model, positive, latent_image, steps: int, seed: int,
        negative=None, cfg: float = 1.0, scheduler: str = "simple", layer_outputs: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        sampling = same_sampling(reference, model, latent_image, positive, negative, steps, scheduler, cfg, seed)
        quality = compared(reference, model, sampling, scheduler, layer_outputs)
        report, csv = quality_text(quality), quality_csv(quality)
        figures = {
            "velocity": quality.velocity,
            "drift": quality.drift,
            "weight": quality.weight,
            "steps": [vars(step) for step in quality.steps],
            "layers": [vars(layer) for layer in quality.layers],
            "csv": csv,
        }
        ui = {"text": [report], "quantflux": [_finite(figures)]}
        return io.NodeOutput(preformatted(report), image(quality_chart(quality)), csv, ui=ui)


def _finite(value):
    """``value`` without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
