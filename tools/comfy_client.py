"""The command line's client of a running ComfyUI, for tools and tests."""

from quantflux.cli.client import TRIVIAL_GRAPH, ComfyClient
from quantflux.cli.results import Finished, Graph, PromptFailed, PromptRejected

__all__ = ["TRIVIAL_GRAPH", "ComfyClient", "Finished", "Graph", "PromptFailed", "PromptRejected"]
