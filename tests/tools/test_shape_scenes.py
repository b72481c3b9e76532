import itertools
import random

import pytest
import shape_scenes as scenes
import torch
import torch.nn.functional as F

ALL = [
    scenes.Scene(*attributes)
    for attributes in itertools.product(
        scenes.SHAPES, scenes.COLOURS, scenes.SIZES, scenes.POSITIONS, scenes.BACKGROUNDS
    )
]


def blur(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def noise(images: torch.Tensor) -> torch.Tensor:
    return (images + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


def read_in_batches(pictured, change, generator):
    found = []
    for start in range(0, len(pictured), 256):
        found += scenes.read(change(scenes.draw(pictured[start : start + 256], generator=generator)))
    return found


def share_equal(found, pictured, *attributes):
    hits = [all(getattr(f, a) == getattr(p, a) for a in attributes) for f, p in zip(found, pictured, strict=True)]
    return sum(hits) / len(hits)


def test_shape_and_colour_of_every_scene_are_read_back():
    found = read_in_batches(ALL, lambda images: images, generator=None)
    assert share_equal(found, ALL, "shape", "colour") >= 0.995


@pytest.mark.parametrize("change", [blur, noise])
def test_shape_and_colour_are_read_back_through_blur_and_noise(change):
    sample = random.Random(1).sample(ALL, 1024)
    found = read_in_batches(sample, change, torch.Generator().manual_seed(1))
    assert share_equal(found, sample, "shape", "colour") >= 0.995


def test_size_position_and_background_are_read_back_under_jitter():
    sample = random.Random(0).sample(ALL, 1024)
    found = read_in_batches(sample, lambda images: images, torch.Generator().manual_seed(0))
    assert share_equal(found, sample, "shape", "colour", "background") >= 0.995
    assert share_equal(found, sample, "size", "position") >= 0.98


def test_a_picture_without_a_shape_reads_as_unknown():
    assert scenes.read_scene(torch.full((3, 128, 128), 0.5)) == (scenes.UNKNOWN, scenes.UNKNOWN)


def test_a_picture_of_pure_noise_reads_as_unknown():
    picture = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert scenes.read_scene(picture)[0] == scenes.UNKNOWN


def test_pictures_stay_inside_the_unit_range_and_edges_are_antialiased():
    picture = scenes.draw([scenes.Scene("circle", "red", "large", "center", "white")])[0]
    assert picture.min() >= 0 and picture.max() <= 1
    assert len(picture[1].unique()) > 10


def test_every_prompt_names_its_shape_and_colour():
    for text, shape, colour in scenes.prompts(500, seed=3):
        assert shape in text.lower() and colour in text.lower()


def test_prompts_repeat_for_the_same_seed():
    assert scenes.prompts(50, seed=1) == scenes.prompts(50, seed=1) != scenes.prompts(50, seed=2)
