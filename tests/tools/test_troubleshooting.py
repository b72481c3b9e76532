"""The messages that docs/troubleshooting.md explains are those of the code."""

import ast
import re

import pytest
from comfy_host import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
OF_OTHERS = {"No module named 'bitsandbytes'", "lora key not loaded"}


def quoted() -> list[str]:
    """The parts of messages in the first column of the table, without what the page leaves out of them."""
    cells = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    texts = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    return [part.strip() for text in texts if text not in OF_OTHERS for part in text.split("…")]


@pytest.fixture(scope="module")
def literals() -> list[str]:
    """All texts in the code, f-strings in parts."""
    files = [path for folder in ("nodes", "quant_core") for path in (REPOSITORY / folder).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("text", quoted())
def test_a_message_has_the_text(text, literals):
    assert any(text in literal for literal in literals)
