"""`quantflux run`: workflows from a shell or a program, without the canvas. Imports neither torch nor a host."""

from .main import main

__all__ = ["main"]
