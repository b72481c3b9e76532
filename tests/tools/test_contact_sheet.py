"""The contact sheet shows every picture in its place."""

import pytest
from contact_sheet import Column, contact_sheet
from PIL import Image

COLOURS = [["red", "lime"], ["blue", "yellow"], ["cyan", "magenta"]]


def column(colours):
    return Column("title", "two\nlines", [Image.new("RGB", (128, 128), colour) for colour in colours])


def test_rows_are_prompts_and_columns_are_columns():
    sheet = contact_sheet(["first", "second"], [column(colours) for colours in COLOURS])
    by_colour = {colour: box(sheet, colour) for colours in COLOURS for colour in colours}
    assert None not in by_colour.values()
    for upper, lower in COLOURS:
        assert by_colour[upper][0] == by_colour[lower][0]
        assert by_colour[upper][3] < by_colour[lower][1]
    lefts = [by_colour[upper][0] for upper, _ in COLOURS]
    assert lefts == sorted(lefts)


def test_a_missing_picture_is_an_error():
    with pytest.raises(ValueError, match="1 pictures for 2 prompts"):
        contact_sheet(["first", "second"], [column(["red"])])


def box(sheet, colour):
    """The bounding box of all pixels of exactly this colour."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    pixels = list(sheet.getdata()) if not hasattr(sheet, "get_flattened_data") else sheet.get_flattened_data()
    mask = Image.new("1", sheet.size)
    mask.putdata([pixel == wanted for pixel in pixels])
    return mask.getbbox()
