"""What layers cost at each precision, and the file that keeps it beside a model."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..config import QuantConfig
from ..errors import CheckpointError

COSTS_SUFFIX = ".costs.csv"
COLUMNS = ("layer", "precision", "squared_error")
_REMEDY = f"Calibrate the model again, or remove the file. Its columns are {', '.join(COLUMNS)}."


@dataclass(frozen=True)
class Cost:
    """One layer at one precision.

    Attributes:
        layer: a linear module, or a block that stands for all of its linear modules, such as ``single_blocks.3``.
        recipe: how it is packed; precision ``none`` leaves it at 16 bit.
        nbytes: bytes of its weights.
        squared_error: what packing it alone adds to the model's output, squared and relative to the output's own
            square. Of different tables only the proportions within each can be compared.
    """

    layer: str
    recipe: QuantConfig
    nbytes: int
    squared_error: float


def candidates(config: QuantConfig) -> list[QuantConfig]:
    """The recipes that a layer may get, ``config``'s own precision being the lowest. 16 bit is the last.

    Half the blocksize with double quantization takes fewer bytes than the blocksize itself without, and is nearer to
    16 bit.

    >>> [recipe.describe() for recipe in candidates(QuantConfig("nf4"))]
    ['nf4 double quant', 'nf4 blocksize 32 double quant', 'nf4', 'int8 threshold 6', '16-bit']
    """
    config = replace(config, budget_gib=None)
    int8, sixteen_bit = replace(config, precision="int8"), replace(config, precision="none")
    if not config.is_four_bit:
        return [int8, sixteen_bit]
    plain = replace(config, double_quant=False)
    halved = [replace(plain, double_quant=True, blocksize=config.blocksize // 2)] if config.blocksize > 32 else []
    return [replace(plain, double_quant=True), *halved, plain, int8, sixteen_bit]


def write_costs(path: str | os.PathLike, costs: Iterable[Cost], comment: str = "") -> None:
    """Write a table. 16 bit, which costs nothing, is left out.

    Args:
        comment: lines for the top of the file, such as what was measured and where.

    Raises:
        SaveError: the file cannot be written; one that was there before stays.
    """
    # only here: what saves a model knows its source, which knows the costs
    from ..export.atomic import atomic_file

    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in comment.splitlines())
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for cost in costs:
        if cost.recipe.precision != "none":
            rows.writerow((cost.layer, cost.recipe.describe(), f"{cost.squared_error:.6g}"))
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def read_costs(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """Layer -> label of its recipe (:meth:`QuantConfig.describe`) -> squared error.

    Raises:
        CheckpointError: the file is no such table.
    """
    table: dict[str, dict[str, float]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(line for line in file if not line.startswith("#"))
            if tuple(next(rows, ())) != COLUMNS:
                raise ValueError("its first line does not name the columns")
            for row in rows:
                layer, precision, squared_error = row
                errors = table.setdefault(layer, {})
                # written so that NaN fails too
                if not 0 <= float(squared_error) < math.inf:
                    raise ValueError(f"the squared error of {layer} at {precision} is {squared_error}")
                if precision in errors:
                    raise ValueError(f"{layer} at {precision} is there twice")
                errors[precision] = float(squared_error)
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(path, f"cannot be read as a table of costs ({error}).", _REMEDY) from error
    if not table:
        raise CheckpointError(path, "is an empty table of costs.", _REMEDY)
    return table
