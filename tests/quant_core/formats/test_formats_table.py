"""The table of docs/formats.md."""

import ast
import re
from pathlib import Path


def test_every_row_of_the_table_of_formats_names_tests_that_exist():
    root = Path(__file__).parents[3]
    lines = (root / "docs" / "formats.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line)]
    # each table has a line of headings, which is followed by the ruled one
    headings = {lines[i - 1] for i, line in enumerate(lines) if re.fullmatch(r"[|\s:-]+", line) and "-" in line}
    rows = [row for row in rows if row not in headings]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(\w+\.py)::(test_\w+)`", row)
        assert named, f"names no test: {row}"
        for file, test in named:
            (path,) = (root / "tests").rglob(file)
            functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            assert test in functions, f"{file} has no {test}"
