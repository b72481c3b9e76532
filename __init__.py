"""QuantFlux: bitsandbytes-quantized FLUX for ComfyUI.

ComfyUI imports this file and asks :func:`comfy_entrypoint` for the nodes. Without a host it does nothing, so that
``import quantflux.quant_core`` works anywhere.
"""

from importlib.util import find_spec

if __package__ and find_spec("folder_paths") is not None:
    from .nodes import comfy_entrypoint

    # served by the host; the canvas looks for help pages in its docs/
    WEB_DIRECTORY = "./web"

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
