"""A node pack for the cluster's tests: a picture that takes its time, and leaves word of who draws it."""

import os
import time
from pathlib import Path

import torch


class SlowColour:
    """Writes `<pid>.<parent's pid>.<colour>` into a folder, waits, and returns a picture of one colour."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802, the host's name
        return {"required": {"colour": ("INT", {"max": 255}), "seconds": ("FLOAT",), "folder": ("STRING",)}}

    def draw(self, colour, seconds, folder):
        Path(folder, f"{os.getpid()}.{os.getppid()}.{colour}").touch()
        time.sleep(seconds)
        if colour == 13:
            raise ValueError("13 is no colour")
        return (torch.full((1, 8, 8, 3), colour / 255),)


NODE_CLASS_MAPPINGS = {"SlowColour": SlowColour}
