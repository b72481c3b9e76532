"""The help pages of the nodes: whole, in each language, and true to the code."""

import ast
import math
import re

import pytest
from comfy_host import REPOSITORY
from export_locales import node_texts
from full_sizes import FLUX_DEV, T5_XXL
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts.packed import packed_nbytes

DOCS = REPOSITORY / "web" / "docs"
NODES = node_texts()
LANGUAGES = ("en", "zh")
PAGES = [(node, language) for node in NODES for language in LANGUAGES]
ERRORS = re.compile(r"^## (?:Common errors|常见错误)$", re.MULTILINE)
PICTURE = re.compile(r"!\[[^]]+\]\(([^)]+)\)")
LARGEST_PICTURE = 200_000  # bytes


def path(node, language):
    """Where the canvas asks for a page: `<node>/<language>.md`, then `<node>.md`, which is English."""
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


def page(node, language):
    return path(node, language).read_text(encoding="utf-8")


def messages(text):
    """What the table of common errors quotes."""
    _, table = ERRORS.split(text)
    return re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)


def test_there_is_a_page_for_each_node_in_each_language_and_no_other():
    assert sorted(DOCS.rglob("*.md")) == sorted(path(*one) for one in PAGES)


@pytest.mark.parametrize("node, language", PAGES)
def test_a_page_tells_of_every_input_and_output(node, language):
    text = page(node, language)
    wanted = [*NODES[node]["inputs"], *(output["name"] for output in NODES[node].get("outputs", {}).values())]
    assert [name for name in wanted if not re.search(rf"^\|.*`{name}`.*\|", text, re.MULTILINE)] == []


@pytest.mark.parametrize("node", NODES)
def test_languages_quote_the_same_messages_and_show_the_same_pictures(node):
    english, *others = (page(node, language) for language in LANGUAGES)
    for other in others:
        assert messages(other) == messages(english)
        assert PICTURE.findall(other) == PICTURE.findall(english)


@pytest.fixture(scope="module")
def texts_of_the_code():
    """Every string in the code, with … where a value is put in."""
    found = []
    for folder in ("nodes", "quant_core"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "…"
                                         for part in node.values))  # fmt: skip
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub("%[rs]", "…", node.value))
    return found


@pytest.mark.parametrize("node", NODES)
def test_messages_are_those_of_the_code(node, texts_of_the_code):
    quoted = messages(page(node, "en"))
    patterns = [".*".join(map(re.escape, message.split("…"))) for message in quoted]
    unknown = [m for m, p in zip(quoted, patterns, strict=True) if not any(re.search(p, t) for t in texts_of_the_code)]
    assert unknown == []


def test_pictures_are_there_and_small_and_are_those_of_docs_where_it_has_them():
    shown = {name for one in PAGES for name in PICTURE.findall(page(*one))}
    assert shown == {file.name for file in DOCS.glob("*.png")}
    for name in shown:
        picture = (DOCS / name).read_bytes()
        assert len(picture) < LARGEST_PICTURE
        original = REPOSITORY / "docs" / name
        assert not original.exists() or picture == original.read_bytes(), f"copy docs/{name} to web/docs/"


def gibibytes(model, config):
    linear = model.linear_shapes()
    total = sum(
        packed_nbytes(shape, config) if name.removesuffix(".weight") in linear else 2 * math.prod(shape)
        for name, shape in model.tensor_shapes().items()
    ) if config else 2 * sum(map(math.prod, model.tensor_shapes().values()))  # fmt: skip
    return f"{total / 2**30:.2f}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_table_of_bytes_is_what_the_formats_take(language):
    rows = [row.strip("| ").split(" | ") for row in page("QuantFluxConfig", language).splitlines() if row[:1] == "|"]
    four_bit = [QuantConfig("nf4", blocksize=blocksize) for blocksize in (32, 64, 128, 4096)]
    configs = [None, QuantConfig("int8"), *four_bit, QuantConfig("nf4", double_quant=True)]
    for (_, bits, flux, t5), config in zip(rows[2:9], configs, strict=True):
        assert (flux, t5) == (gibibytes(FLUX_DEV, config), gibibytes(T5_XXL, config))
        if config and config.is_four_bit:
            assert bits == f"{8 * packed_nbytes((12288, 3072), config) / (12288 * 3072):.4g}"


def test_pages_and_locales_are_shipped():
    left_out = {line.strip().strip("/") for line in (REPOSITORY / ".comfyignore").read_text().splitlines()}
    assert not left_out & {"web", "locales", "web/docs", "*.md", "*.png", "*.json"}
