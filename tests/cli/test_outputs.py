"""Files are saved under their own names, never over others; texts are shown once."""

from quantflux.cli.outputs import save_files, texts
from quantflux.cli.results import Finished, OutputFile

GRAPH = {
    "1": {"class_type": "QuantFluxPlan", "inputs": {}, "_meta": {"title": "VRAM Plan"}},
    "2": {"class_type": "PreviewAny", "inputs": {}},
}


def finished(*names, outputs=None):
    files = [OutputFile("1", "images", name, name.encode()) for name in names]
    return Finished("id", {"outputs": outputs or {}}, files)


def test_files_keep_their_order_and_names_behind_the_prefix(tmp_path):
    paths = save_files(finished("b.png", "a.png"), tmp_path, "0003_")
    assert [path.name for path in paths] == ["0003_b.png", "0003_a.png"]
    assert [path.read_bytes() for path in paths] == [b"b.png", b"a.png"]


def test_a_file_that_exists_is_kept(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    paths = save_files(finished("a.png", "a.png"), tmp_path)
    assert [path.name for path in paths] == ["a_2.png", "a_3.png"]
    assert (tmp_path / "a.png").read_bytes() == b"mine"


def test_a_name_from_the_server_never_leads_out_of_the_folder(tmp_path):
    paths = save_files(finished("../../a.png", "..\\b.png", "/etc/c.png"), tmp_path)
    assert {path.parent for path in paths} == {tmp_path}
    assert [path.name for path in paths] == ["a.png", "b.png", "c.png"]


def test_a_text_shown_twice_is_printed_once_under_its_first_title():
    outputs = {"1": {"text": ["table\nof two lines"]}, "2": {"text": ["table\nof two lines", "one line", ""]}}
    assert texts(finished(outputs=outputs), GRAPH) == ["VRAM Plan:\ntable\nof two lines", "PreviewAny: one line"]
