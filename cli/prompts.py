"""`--prompts FILE.csv`: a run of the workflow for each row."""

from __future__ import annotations

import csv
import os
from collections import Counter

from .errors import UsageError
from .settings import Setting

# In characters: the most that every system's csv module takes, and not the 131072 that it begins with.
LONGEST_CELL = 2**31 - 1


def read_prompts(path: str | os.PathLike) -> list[list[Setting]]:
    """Return the settings of each row: the header has the keys, and an empty cell sets nothing.

    Raises UsageError if the file cannot be read, has no rows, or a row has not as many cells as the header.
    """
    csv.field_size_limit(LONGEST_CELL)
    try:
        # Spreadsheet programs begin a UTF-8 file with a byte order mark.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a CSV file in UTF-8: {error}.") from None
    if len(lines) < 2:
        raise UsageError(
            f"{path} has no rows: its first line has the keys, such as 6.text, and each further one values."
        )
    keys = [key.strip() for key in lines[0][1]]
    if repeated := [key for key, count in Counter(keys).items() if count > 1]:
        raise UsageError(f"{path} has the column {', '.join(repeated)} more than once.")
    for line, cells in lines[1:]:
        if len(cells) != len(keys):
            raise UsageError(
                f"{path}, line {line}: {len(cells)} cells, but the header has {len(keys)}. "
                "A text with a comma in it stands in double quotes."
            )
    return [[(key, cell) for key, cell in zip(keys, cells, strict=True) if cell] for _, cells in lines[1:]]
