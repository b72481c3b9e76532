"""A line on a terminal, nothing elsewhere."""

import io

from quantflux.cli.progress import NodeProgress, Progress

GRAPH = {"3": {"class_type": "KSampler", "inputs": {}}}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    """What stood on the line, one after another."""
    shown = [part.strip() for part in stream.getvalue().split("\r")]
    return [part for i, part in enumerate(shown) if part and part != shown[i - 1]]


def test_the_node_and_its_step_are_shown_and_cleared():
    stream = Terminal()
    with Progress(stream) as progress:
        hooks = NodeProgress(progress, GRAPH, "[2/3] ")
        hooks.on_node("3")
        hooks.on_progress("3", 1.0, 20)
    assert lines(stream) == ["[2/3] KSampler", "[2/3] KSampler: 1/20"]
    assert stream.getvalue().rpartition("\r")[2] == ""


def test_a_long_text_stays_on_its_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Progress(stream).show("x" * 100)
    assert max(len(part) for part in stream.getvalue().split("\r")) == 19


def test_nothing_is_written_where_there_is_no_terminal_or_it_is_not_wanted():
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        with Progress(stream, quiet) as progress:
            progress.show("text")
        assert stream.getvalue() == ""
