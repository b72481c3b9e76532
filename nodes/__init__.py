"""The nodes, one file each."""

# ruff: noqa: E402, I001

from .host.requirements import require_bitsandbytes, require_host

# before anything that an older one lacks is imported
require_host()
require_bitsandbytes()

from comfy_api.latest import ComfyExtension, io

from .compile import QuantFluxCompile
from .config import QuantFluxConfig
from .dequantize import QuantFluxDequantize
from .load_t5 import QuantFluxLoadT5
from .load_transformer import QuantFluxLoadTransformer
from .memory_report import QuantFluxMemoryReport
from .plan import QuantFluxPlan
from .quality import QuantFluxQuality
from .quantize import QuantFluxQuantize
from .save import QuantFluxSave


class QuantFluxExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            QuantFluxConfig,
            QuantFluxLoadTransformer,
            QuantFluxLoadT5,
            QuantFluxSave,
            QuantFluxDequantize,
            QuantFluxCompile,
            QuantFluxMemoryReport,
            QuantFluxPlan,
            QuantFluxQuality,
            QuantFluxQuantize,
        ]


async def comfy_entrypoint() -> QuantFluxExtension:
    return QuantFluxExtension()
