"""Saving quantized models: as one file, as a folder of diffusers or transformers, and to the Hugging Face Hub."""

from .errors import SaveError
from .folder import save_diffusers_folder
from .hub import push_to_hub
from .provenance import Provenance, provenance_of
from .single_file import save_single_file

__all__ = ["Provenance", "SaveError", "provenance_of", "push_to_hub", "save_diffusers_folder", "save_single_file"]
