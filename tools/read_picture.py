"""Reads what the host has drawn: shape and colour of a picture, and whether two pictures are the same."""

from hashlib import sha256

import numpy as np
import torch
from PIL import Image
from shape_scenes import read_scene


def read_picture(picture: Image.Image) -> tuple[str, str]:
    """Return the shape and the colour in a square RGB picture, "unknown" for what cannot be made out."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return read_scene(pixels.permute(2, 0, 1) / 255)


def pixel_hash(picture: Image.Image) -> str:
    """Return a hash of the pixels: the same for two pictures only if they are equal bit for bit."""
    return sha256(picture.convert("RGB").tobytes()).hexdigest()
