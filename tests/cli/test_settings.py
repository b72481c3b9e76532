"""Which input a key names, and which value a text is for it."""

import copy

import pytest
from quantflux.cli.errors import UsageError
from quantflux.cli.settings import parse_setting, read_value, with_settings

GRAPH = {
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 0]}, "_meta": {"title": "Prompt"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 0]}, "_meta": {"title": "v1.5 text"}},
    "3": {"class_type": "KSampler", "inputs": {"seed": 0, "steps": 20, "sampler_name": "euler"}},
    "Prompt": {"class_type": "Note", "inputs": {"extra.part": 1}},
    "8": {"class_type": "Resize", "inputs": {}},
}
OBJECT_INFO = {
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {}], "clip": ["CLIP"]}}},
    "KSampler": {
        "input": {
            "required": {"seed": ["INT", {}], "steps": ["INT", {}], "sampler_name": [["euler", "1"]]},
            "optional": {"tiling": ["BOOLEAN", {}], "mode": ["COMBO", {"options": ["a", "2"]}]},
        }
    },
    "Resize": {"input": {"required": {"how": ["COMFY_DYNAMICCOMBO_V3", {}], "to": ["COMFY_AUTOGROW_V3", {}]}}},
}


def set_in(*arguments):
    return with_settings(GRAPH, [parse_setting(argument) for argument in arguments], OBJECT_INFO)


def test_a_node_is_named_by_id_by_title_or_by_class():
    graph = set_in("6.text=by id", "v1.5 text.text=by title", "KSampler.seed=3")
    assert graph["6"]["inputs"]["text"] == "by id"
    assert graph["7"]["inputs"]["text"] == "by title"
    assert graph["3"]["inputs"]["seed"] == 3


def test_an_id_goes_before_a_title_of_the_same_name():
    assert set_in("Prompt.extra.part=2")["Prompt"]["inputs"] == {"extra.part": 2}


def test_the_graph_that_was_given_stays_as_it_was():
    before = copy.deepcopy(GRAPH)
    set_in("6.text=new", "KSampler.steps=4")
    assert before == GRAPH


def test_an_input_that_the_file_leaves_out_can_be_set():
    assert set_in("KSampler.tiling=true")["3"]["inputs"]["tiling"] is True


def test_a_part_of_an_input_that_has_parts_can_be_set():
    assert set_in("8.how.width=4", "8.to.image1=5")["8"]["inputs"] == {"how.width": 4, "to.image1": 5}


def test_a_value_may_hold_equals_signs_and_be_empty():
    assert set_in("6.text=a=b=c")["6"]["inputs"]["text"] == "a=b=c"
    assert set_in("6.text=")["6"]["inputs"]["text"] == ""


@pytest.mark.parametrize(
    ("text", "spec", "value"),
    [
        ("2025", ["STRING", {}], "2025"),
        ('"quoted"', ["STRING", {}], '"quoted"'),
        ("true", ["STRING", {}], "true"),
        ("1", [["euler", "1"]], "1"),
        ("2", ["COMBO", {"options": ["a", "2"]}], "2"),
        ("3", ["COMBO"], 3),
        ("0.5", ["FLOAT", {}], 0.5),
        ("false", ["BOOLEAN", {}], False),
        ('["4", 0]', ["MODEL"], ["4", 0]),
        ("not json", ["INT", {}], "not json"),
        ("NaN", ["FLOAT", {}], "NaN"),
        ("5", None, 5),
    ],
)
def test_texts_and_choices_are_taken_as_they_are_and_others_as_json(text, spec, value):
    read = read_value(text, spec)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("6.text", "expected NODE.INPUT=VALUE"),
        ("text=a.b", "expected NODE.INPUT=VALUE"),
        ("VAE.text=a", r"(?s)VAE\.text: no node.*Prompt \(CLIPTextEncode, node 6\).*KSampler \(node 3\)"),
        ("CLIPTextEncode.text=a", r"(?s)several nodes are called CLIPTextEncode.*node 6.*node 7"),
        ("KSampler.sed=3", r"KSampler \(node 3\) has no input sed\. It has: seed, steps, sampler_name, tiling, mode"),
        ("6.text.x=a", r"Prompt \(CLIPTextEncode, node 6\) has no input text\.x\. It has: text, clip"),
        ("KSampler.seed.=3", r"KSampler \(node 3\) has no input seed\.\. It has: seed, steps"),
        ("KSampler.sampler_name.x=3", r"has no input sampler_name\.x"),
        ("8.how.=3", r"Resize \(node 8\) has no input how\.\. It has: how, to"),
    ],
)
def test_what_cannot_be_set_is_told_with_what_there_is(argument, message):
    with pytest.raises(UsageError, match=message):
        set_in(argument)
