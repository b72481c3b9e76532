"""QuantFlux: bitsandbytes-quantized FLUX for ComfyUI.

ComfyUI imports this file and asks :func:`comfy_entrypoint` for the nodes. Without a host it does nothing, so that
``import quantflux.quant_core`` works anywhere.
"""

from importlib.util import find_spec

if __package__ and find_spec("folder_paths") is not None:
    from .nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
