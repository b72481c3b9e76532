from pathlib import Path

import comfy.model_patcher
import pytest
from host_symbols import used_symbols
from quantflux.nodes.host.patcher import PackedModelPatcher
from quantflux.nodes.host.requirements import PATCHER_METHODS, SYMBOLS, HostTooOldError, require_host

NODES = Path(__file__).parents[2] / "nodes"


def test_the_list_names_all_that_the_nodes_take_from_the_host_and_nothing_else():
    assert {module: set(names) for module, names in SYMBOLS.items()} == used_symbols(NODES)


def test_the_list_names_all_methods_of_the_patcher_that_are_answered_otherwise():
    stock = comfy.model_patcher.ModelPatcher
    ours = {name for name in vars(PackedModelPatcher) if not name.startswith("__") and hasattr(stock, name)}
    assert set(PATCHER_METHODS) == ours


def test_this_host_has_it_all():
    require_host()


def test_what_a_host_lacks_is_named_with_the_way_out(monkeypatch):
    monkeypatch.delattr(comfy.model_patcher.ModelPatcher, "pin_weight_to_device")
    symbols = {"comfy.lora": ("calculate_weight", "no_such_name"), "comfy.no_such_module": ("anything",)}
    message = (
        r"needs ComfyUI 0\.3\.75 or newer\. This one, [0-9.]+, lacks comfy\.lora\.no_such_name, "
        r"comfy\.no_such_module\.anything, comfy\.model_patcher\.ModelPatcher\.pin_weight_to_device\. Update ComfyUI\."
    )
    with pytest.raises(HostTooOldError, match=message):
        require_host(symbols)
