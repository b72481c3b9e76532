import os
import re
import subprocess
import sys
from pathlib import Path

import comfy.model_patcher
import pytest
from comfy_host import host_root
from host_symbols import used_symbols
from quantflux.nodes.host.patcher import PackedModelPatcher
from quantflux.nodes.host.requirements import (
    OLDEST_BITSANDBYTES,
    OPERATORS,
    PATCHER_METHODS,
    SYMBOLS,
    HostTooOldError,
    require_bitsandbytes,
    require_host,
)

REPOSITORY = Path(__file__).parents[2]
NODES = REPOSITORY / "nodes"


def test_the_list_names_all_that_the_nodes_take_from_the_host_and_nothing_else():
    assert {module: set(names) for module, names in SYMBOLS.items()} == used_symbols(NODES)


def test_the_list_names_all_methods_of_the_patcher_that_are_answered_otherwise():
    stock = comfy.model_patcher.ModelPatcher
    ours = {name for name in vars(PackedModelPatcher) if not name.startswith("__") and hasattr(stock, name)}
    assert set(PATCHER_METHODS) == ours


def test_the_list_names_all_operators_of_bitsandbytes_that_are_called():
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "quant_core").rglob("*.py")]
    assert set(OPERATORS) == set(re.findall(r"torch\.ops\.bitsandbytes\.(\w+)", "\n".join(sources)))


def test_this_host_has_it_all():
    require_host()
    require_bitsandbytes()


def test_what_a_host_lacks_is_named_with_the_way_out(monkeypatch):
    monkeypatch.delattr(comfy.model_patcher.ModelPatcher, "pin_weight_to_device")
    symbols = {"comfy.lora": ("calculate_weight", "no_such_name"), "comfy.no_such_module": ("anything",)}
    message = (
        r"needs ComfyUI 0\.3\.75 or newer\. This one, [0-9.]+, lacks comfy\.lora\.no_such_name, "
        r"comfy\.no_such_module\.anything, comfy\.model_patcher\.ModelPatcher\.pin_weight_to_device\. Update ComfyUI\."
    )
    with pytest.raises(HostTooOldError, match=message):
        require_host(symbols)


def test_an_older_bitsandbytes_is_named_with_the_way_out_before_there_are_nodes(tmp_path):
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text('__version__ = "0.47.0"')
    program = "import comfy.cli_args; comfy.cli_args.args.cpu = True; import quantflux.nodes"
    paths = [str(tmp_path), str(host_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    requirements = REPOSITORY / "requirements.txt"
    assert f"bitsandbytes>={OLDEST_BITSANDBYTES}" in requirements.read_text()
    last = result.stderr.splitlines()[-1]
    assert f"QuantFlux needs bitsandbytes {OLDEST_BITSANDBYTES} or newer, this Python has 0.47.0, which lacks" in last
    assert "gemm_4bit" in last and last.endswith(f'"{sys.executable}" -m pip install -r "{requirements}"')
