"""Rows of a CSV file are settings."""

import pytest
from quantflux.cli.errors import UsageError
from quantflux.cli.prompts import read_prompts


@pytest.fixture
def table(tmp_path):
    def write(content):
        path = tmp_path / "prompts.csv"
        path.write_bytes(content)
        return path

    return write


def test_the_header_has_the_keys_and_each_row_is_a_run(table):
    path = table(b'6.text, KSampler.seed\n"a cat, on a mat",3\n"two\nlines",4\n')
    assert read_prompts(path) == [
        [("6.text", "a cat, on a mat"), ("KSampler.seed", "3")],
        [("6.text", "two\nlines"), ("KSampler.seed", "4")],
    ]


def test_an_empty_cell_sets_nothing_and_an_empty_line_is_no_row(table):
    assert read_prompts(table(b"a.x,a.y\n1,\n\n,2\n")) == [[("a.x", "1")], [("a.y", "2")]]


def test_a_file_saved_by_a_spreadsheet_is_read(table):
    assert read_prompts(table("\ufeffa.x,a.y\r\nä,2\r\n".encode())) == [[("a.x", "ä"), ("a.y", "2")]]


def test_a_cell_may_be_longer_than_the_csv_module_begins_with(table):
    assert read_prompts(table(b"a.x\n" + b"y" * 131_073 + b"\n")) == [[("a.x", "y" * 131_073)]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"a.x\n", "has no rows"),
        (b"a.x,a.y\n1,2\n1,2,3\n", "line 3: 3 cells, but the header has 2"),
        (b"a.x,a.y\n1\n", "line 2: 1 cells"),
        (b"a.x,b.y,a.x\n1,2,3\n", "column a.x more than once"),
        (b'a.x\n"open', "not a CSV file"),
        (b"a.x\n\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(table, content, message):
    with pytest.raises(UsageError, match=rf"prompts\.csv.*{message}"):
        read_prompts(table(content))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.csv cannot be read: No such file"):
        read_prompts(tmp_path / "gone.csv")
