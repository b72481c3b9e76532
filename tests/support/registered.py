"""The copy of quant_core whose layouts are registered: a host that has loaded the pack has it under another name."""

import importlib
from types import ModuleType

from comfy_kitchen.tensor import get_layout_class
from quantflux.quant_core.layouts import FourBitLayout


def registered_module(name: str) -> ModuleType:
    """The module ``quant_core.name``, such as ``layouts.four_bit``, that runs for packed weights in this process."""
    package = get_layout_class(FourBitLayout.NAME).__module__.rpartition(".layouts.")[0]
    return importlib.import_module(f"{package}.{name}")
