"""Messages about files whose names may be anything."""

import json

import pytest
import torch
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError, legible
from quantflux.quant_core.hub import HubError
from quantflux.quant_core.stored import read_contents
from safetensors.torch import save_file

ESCAPES = "\x1b[2J\x1b]0;title\x07"
LONG = ESCAPES + "x" * 200_000


def refused(read) -> str:
    with pytest.raises(CheckpointError) as error:
        read()
    message = str(error.value)
    assert len(message) < 5000 and message.isprintable() and error.value.cause in message
    return message


def test_the_name_of_a_tensor_is_shortened_and_escaped(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({f"{LONG}.weight": torch.zeros(4, dtype=torch.bfloat16), f"{LONG}.SCB": torch.zeros(4)}, path)
    message = refused(lambda: read_contents(open_checkpoint(path)))
    assert message.startswith(r"model.safetensors: has the row scales \x1b[2J\x1b]0;title\x07xxx")
    # what comes after the long names is there too
    assert ".SCB, but " in message and "x.weight is not int8. The file is damaged" in message


def test_a_name_in_an_index_is_shortened_and_escaped(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(2)}, tmp_path / "s.safetensors")
    for name in (LONG, "line\nbreak", "\ud800", "right to \u202e left", "many words " * 20_000):
        index = {"weight_map": {name: "s.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert ", which its index names. The folder is incomplete" in refused(lambda: open_checkpoint(tmp_path))


def test_the_name_of_a_file_in_a_repository_is_shortened_and_escaped():
    message = str(HubError("owner/name", f"lacks {LONG}.safetensors.", "Choose another."))
    assert len(message) < 1000 and message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "holds several safetensors files: " + ", ".join(f"model-{i:05}-of-00099.safetensors" for i in range(99)),
        "needs 12.00 GiB at C:\\Users\\имя\\模型 flux.safetensors.",
        "of a full-width\u3000space and a no-break\xa0one",
        "",
    ],
)
def test_an_ordinary_text_stays_as_it_is(text):
    assert legible(text) == text
    error = CheckpointError("folder/模型\u3000a.safetensors", text, "Choose another.")
    assert str(error) == f"模型\u3000a.safetensors: {text} Choose another." and error.cause == text
