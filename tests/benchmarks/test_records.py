"""Records are in the file as soon as there are any, and what a process measured before it failed is kept."""

import json

import pytest
from comfy_host import host_root
from records import Records, RunFailed, in_fresh_process, markdown


@pytest.fixture
def host_path(monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(host_root()))


def test_a_record_is_in_the_file_at_once_with_what_is_said_of_the_machine(tmp_path, host_path, capsys):
    path = tmp_path / "out.jsonl"
    records = Records(str(path), backend="inductor")
    for number in (1, 2):
        records.add({"step_s": number})
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["step_s"] for line in lines] == list(range(1, number + 1))
    assert {"machine", "versions", "commit", "date"} <= lines[0].keys()
    assert lines[0]["backend"] == "inductor"
    records.finish(lambda records: f"{len(records)} records")
    assert (tmp_path / "out.md").read_text() == "2 records\n"
    assert capsys.readouterr().out.endswith("2 records\n")


def test_a_process_that_fails_is_told_by_its_last_line(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with pytest.raises(RunFailed, match="COMFYUI_PATH"):
        list(in_fresh_process("measure.py", "stock-bf16", "none.safetensors"))


def test_lines_printed_before_a_failure_are_kept(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("print('{\"a\": 1}')\nprint('not a record')\nraise ValueError('late')\n")
    lines = in_fresh_process(str(program))
    assert next(lines) == {"a": 1}
    with pytest.raises(RunFailed, match="ValueError: late"):
        next(lines)


def test_a_short_row_of_a_table_is_filled():
    assert markdown(["a", "b"], [["1"], ["2", "3"]]) == "| a | b |\n| --- | --- |\n| 1 |  |\n| 2 | 3 |"
