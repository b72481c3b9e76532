"""Compile: torch.compile for a MODEL, block by block, with a report of what was compiled."""

from comfy_api.latest import io

from .host.compile_settings import BACKENDS, DYNAMIC, MODES, CompileSettings
from .host.compiled import compiled_model
from .report import shown
from .types import CATEGORY


class QuantFluxCompile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QuantFluxCompile",
            display_name="Compile",
            category=CATEGORY,
            description="Compiles a transformer with torch.compile. The first step of sampling then takes long, the "
            "others less time than before. What was compiled, and what again, is written on the node after sampling.",
            inputs=[
                io.Model.Input("model", tooltip="Any MODEL, quantized or not. LoRAs go in front of or behind this."),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    default=BACKENDS[0],
                    tooltip="What the graphs are given to. inductor makes them faster; it needs Triton on a GPU and a "
                    "C++ compiler on a CPU. aot_eager and eager make nothing faster: they are for finding faults.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="How hard inductor tries. max-autotune measures several kernels for each product, which "
                    "takes minutes. reduce-overhead and max-autotune use CUDA graphs, which need ComfyUI's option "
                    "--disable-cuda-malloc.",
                ),
                io.Boolean.Input(
                    "regional",
                    default=True,
                    tooltip="Compile each block by itself: equal blocks share one compilation. Off: the whole model "
                    "as one, which takes many times as long.",
                ),
                io.Boolean.Input(
                    "fullgraph",
                    default=False,
                    tooltip="Stop with an error where something cannot be compiled, rather than run it uncompiled.",
                ),
                io.Combo.Input(
                    "dynamic",
                    options=list(DYNAMIC),
                    default="auto",
                    tooltip="Sizes of pictures. auto: compiled for the first size, for all when a second comes. on: "
                    "for all at once. off: for each anew. The length of a prompt never matters.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The same MODEL, compiled at the first step of sampling. For a LoRA loader or a sampler."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, backend: str, mode: str, regional: bool, fullgraph: bool, dynamic: str) -> io.NodeOutput:
        settings = CompileSettings(backend, mode, regional, fullgraph, dynamic)
        hidden = getattr(cls, "hidden", None)  # only where the host runs the node
        compiled, report = compiled_model(model, settings, hidden and hidden.unique_id)
        return io.NodeOutput(compiled, ui=shown([report.text()], [report.figures]))
