"""The nodes, one file each."""

from comfy_api.latest import ComfyExtension, io

from .config import QuantFluxConfig
from .dequantize import QuantFluxDequantize
from .load_t5 import QuantFluxLoadT5
from .load_transformer import QuantFluxLoadTransformer
from .memory_report import QuantFluxMemoryReport
from .save import QuantFluxSave


class QuantFluxExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            QuantFluxConfig,
            QuantFluxLoadTransformer,
            QuantFluxLoadT5,
            QuantFluxSave,
            QuantFluxDequantize,
            QuantFluxMemoryReport,
        ]


async def comfy_entrypoint() -> QuantFluxExtension:
    return QuantFluxExtension()
