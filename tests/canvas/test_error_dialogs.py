"""Wrong files and wrong settings, run from the canvas: what a person then reads is what is wrong, and what to do."""

import re

import pytest
from bad_input import BAD_SETTINGS, NO_T5, NO_TRANSFORMERS

CONFIG, TRANSFORMER, T5 = "QuantFluxConfig", "QuantFluxLoadTransformer", "QuantFluxLoadT5"
PACKED = "canvas/packed_00001_.safetensors"


@pytest.fixture(scope="module", autouse=True)
def files(visitor, host, tmp_path_factory):
    """All the wrong files in the model folders, and on the canvas's lists, which the key R reads anew."""
    folder = tmp_path_factory.mktemp("bad")
    for kind, table in (("diffusion_models", NO_TRANSFORMERS), ("text_encoders", NO_T5)):
        for name, (content, _, _) in table.items():
            (folder / name).write_bytes(content())
            host.add_model(kind, folder / name)
    host.client.run(
        {
            "load": {"class_type": TRANSFORMER, "inputs": {"model_name": "flux_tiny.safetensors"}},
            "save": {
                "class_type": "QuantFluxSave",
                "inputs": {"model": ["load", 0], "filename_prefix": "canvas/packed", "format": "single file"},
            },
        }
    )
    visitor.new_workflow()
    visitor.page.mouse.click(900, 600)
    visitor.page.keyboard.press("r")
    visitor.wait_for_choice(TRANSFORMER, "model_name", PACKED)
    visitor.wait_for_choice(T5, "t5_name", next(iter(NO_T5)))


@pytest.fixture
def loader(user):
    """A function that puts a config, a loader and a report of its memory on the canvas, linked."""

    def place(node, socket):
        for column, kind in enumerate((CONFIG, node, "QuantFluxMemoryReport", "PreviewAny")):
            user.place(kind, 120 + column * 430, 300)
        user.link(CONFIG, 0, node, "config")
        user.link(node, 0, "QuantFluxMemoryReport", socket)
        user.link("QuantFluxMemoryReport", 0, "PreviewAny", "source")
        return user

    return place


def assert_told(user, *patterns):
    """The canvas shows an error with all of these in it."""
    text = user.read_error()
    assert [pattern for pattern in patterns if not re.search(pattern, text)] == [], text


@pytest.mark.parametrize("name", NO_TRANSFORMERS)
def test_a_file_that_is_no_flux_is_named_and_explained(loader, name):
    user = loader(TRANSFORMER, "model")
    user.choose(TRANSFORMER, "model_name", name)
    assert user.run() == "execution_error"
    _, cause, way_out = NO_TRANSFORMERS[name]
    assert_told(user, re.escape(name), cause, way_out)


@pytest.mark.parametrize("name", NO_T5)
def test_a_file_that_is_no_t5_is_named_and_explained(loader, name):
    user = loader(T5, "clip")
    user.choose(T5, "t5_name", name)
    user.set(T5, clip_l_name="clip_l_tiny.safetensors")
    assert user.run() == "execution_error"
    _, cause, way_out = NO_T5[name]
    assert_told(user, re.escape(name), cause, way_out)


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_setting_out_of_range_is_named_with_its_value(loader, setting):
    user = loader(TRANSFORMER, "model")
    user.set(TRANSFORMER, model_name="flux_tiny.safetensors")
    user.set(CONFIG, **{setting: BAD_SETTINGS[setting]})
    # which of both, depends on the host's version
    assert user.run() in ("execution_error", "refused")
    assert_told(user, setting, re.escape(str(BAD_SETTINGS[setting]).removesuffix(".0")))


def test_a_config_that_disagrees_with_a_packed_file_is_told_so(loader):
    user = loader(TRANSFORMER, "model")
    user.choose(TRANSFORMER, "model_name", PACKED)
    user.choose(CONFIG, "precision", "int8")
    assert user.run() == "execution_error"
    assert_told(user, re.escape(PACKED.rpartition("/")[2]), "already packed as nf4", "asks for int8", "set it to that")


def test_after_an_error_the_canvas_runs_the_right_file(loader):
    user = loader(TRANSFORMER, "model")
    user.choose(TRANSFORMER, "model_name", "noise.safetensors")
    assert user.run() == "execution_error"
    user.read_error()
    user.choose(TRANSFORMER, "model_name", "flux_tiny.safetensors")
    assert user.run() == "execution_success"
    assert not user.has_problems()
