"""Where a step is measured: size of the picture, how many at once, length of the text."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

TEXT_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Point:
    size: int = 1024  # pixels of a side
    batch: int = 1
    text_tokens: int = TEXT_TOKENS

    @classmethod
    def of(cls, record: dict) -> Point | None:
        """Where a record was measured; None of a run that failed before. Older records have but a size."""
        found = {field.name: record[field.name] for field in dataclasses.fields(cls) if field.name in record}
        return cls(**found) if "size" in found else None

    def __str__(self) -> str:
        return f"{self.size}x{self.size}, batch {self.batch}, {self.text_tokens} text tokens"


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def add_options(parser: argparse.ArgumentParser):
    parser.add_argument("--size", type=int, default=Point.size)
    for option, example in (("sizes", "512,1536,2048"), ("batches", "2,4"), ("text-tokens", "128,512")):
        parser.add_argument(f"--{option}", type=numbers, default=[], help=f"measured too, one at a time: {example}")


def points(arguments: argparse.Namespace) -> list[Point]:
    """The first is ``--size``; each other changes one thing of it."""
    first = Point(arguments.size)
    changes = {"size": arguments.sizes, "batch": arguments.batches, "text_tokens": arguments.text_tokens}
    varied = [dataclasses.replace(first, **{name: v}) for name, values in changes.items() for v in values]
    return list(dict.fromkeys([first, *varied]))


def options(arguments: argparse.Namespace) -> Sequence[str]:
    """The same for the command line of another program."""
    lists = {"--sizes": arguments.sizes, "--batches": arguments.batches, "--text-tokens": arguments.text_tokens}
    words = ["--size", str(arguments.size)]
    for option, values in lists.items():
        words += [option, ",".join(map(str, values))]
    return words
