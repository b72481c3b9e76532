"""Every text of every node is there, in English from the schemas and in each translation."""

import json

import pytest
from export_locales import FILE, LOCALES, MESSAGE_SYNTAX, english, node_texts

TRANSLATIONS = sorted({path.name for path in LOCALES.iterdir()} - {"en"})


def flat(texts, *above):
    """(keys from the node's id on) -> text."""
    found = {}
    for key, value in texts.items():
        found |= flat(value, *above, key) if isinstance(value, dict) else {(*above, key): value}
    return found


def translation(language):
    return json.loads((LOCALES / language / FILE).read_text(encoding="utf-8"))


def test_every_node_input_and_output_has_a_text():
    assert [keys for keys, text in flat(node_texts()).items() if not text] == []


def test_the_english_file_is_what_the_schemas_say():
    written = (LOCALES / "en" / FILE).read_text(encoding="utf-8")
    assert written == english(), "run: .venv/bin/python tools/export_locales.py"


def test_english_texts_that_the_canvas_would_misread_are_left_out():
    left_out = flat(node_texts()).keys() - flat(json.loads(english())).keys()
    assert left_out == {(node, "inputs", "hub_repo", "tooltip") for node, texts in node_texts().items()
                        if "hub_repo" in texts["inputs"]}  # fmt: skip


def test_there_is_a_chinese_translation():
    assert "zh" in TRANSLATIONS


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_lacks_no_text_and_has_none_left_over(language):
    assert flat(translation(language)).keys() == flat(node_texts()).keys()


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_has_only_texts_that_every_canvas_shows(language):
    texts = flat(translation(language))
    assert {keys: text for keys, text in texts.items() if not text.strip() or MESSAGE_SYNTAX.search(text)} == {}


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_descriptions_and_tooltips_are_translated(language):
    translated, here = flat(node_texts()), flat(translation(language))
    long = [keys for keys in translated if keys[-1] in ("description", "tooltip")]
    assert [keys for keys in long if here[keys] == translated[keys]] == []
