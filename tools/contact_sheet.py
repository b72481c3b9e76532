"""Lays out pictures in a labelled grid: one row for each prompt, one column for each way of drawing it."""

import textwrap
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PICTURE, GAP, LABEL_WIDTH, HEADER_HEIGHT = 256, 12, 220, 96
TITLE_SIZE, TEXT_SIZE = 24, 16
PAPER, INK, GREY = "white", "#1a1a1a", "#666666"


@dataclass(frozen=True)
class Column:
    """A column's heading, the small print below it (may have several lines), and its pictures from top to bottom."""

    title: str
    notes: str
    pictures: list[Image.Image]


def contact_sheet(prompts: list[str], columns: list[Column]) -> Image.Image:
    """Return the sheet as an RGB image. Every column must have one picture for each prompt."""
    for column in columns:
        if len(column.pictures) != len(prompts):
            raise ValueError(f'column "{column.title}" has {len(column.pictures)} pictures for {len(prompts)} prompts')
    step = PICTURE + GAP
    size = (LABEL_WIDTH + len(columns) * step + GAP, HEADER_HEIGHT + len(prompts) * step + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    title_font, text_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(TEXT_SIZE)

    for row, prompt in enumerate(prompts):
        label = "\n".join(textwrap.wrap(prompt, 24))
        draw.multiline_text((GAP, HEADER_HEIGHT + row * step), label, INK, text_font)
    for index, column in enumerate(columns):
        left = LABEL_WIDTH + index * step
        draw.text((left, GAP), column.title, INK, title_font)
        draw.multiline_text((left, GAP + TITLE_SIZE + 8), column.notes, GREY, text_font)
        for row, picture in enumerate(column.pictures):
            resized = picture.resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
            sheet.paste(resized, (left, HEADER_HEIGHT + row * step))
    return sheet
