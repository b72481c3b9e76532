"""Runs a script that ends when the program which started it does: `python child.py SCRIPT ARGUMENTS…`.

The starter holds the writing end of this program's standard input. However the starter ends, by force too, that end
is closed, and no ComfyUI stays behind that keeps a GPU's memory.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path


def _end_with_the_starter() -> None:
    # The descriptor and not sys.stdin, whose lock a waiting thread would hold when the interpreter shuts down.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
