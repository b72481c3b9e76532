"""FLUX: its names and its configuration."""

from .config import FluxConfig, read_flux_config
from .names import diffusers_parts, native_state_dict

__all__ = ["FluxConfig", "diffusers_parts", "native_state_dict", "read_flux_config"]
