"""Models from the Hugging Face Hub."""

from .path import hub_path
from .repo import HubError

__all__ = ["HubError", "hub_path"]
