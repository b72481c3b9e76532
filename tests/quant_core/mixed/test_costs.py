"""The table of costs: what is offered, and the file that keeps it."""

import errno
import os

import pytest
import torch
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.export import SaveError
from quantflux.quant_core.mixed import Cost, candidates, read_costs, write_costs


def test_candidates_keep_what_belongs_to_the_arithmetic():
    config = QuantConfig("fp4", torch.float16, blocksize=128, int8_threshold=3.0, budget_gib=1.0)
    recipes = candidates(config)
    assert [r.describe() for r in recipes] == [
        "fp4 blocksize 128 double quant", "fp4 double quant", "fp4 blocksize 128", "int8 threshold 3", "16-bit"
    ]  # fmt: skip
    assert {(r.compute_dtype, r.int8_threshold, r.budget_gib) for r in recipes} == {(torch.float16, 3.0, None)}


def test_the_smallest_blocksize_is_not_halved_and_int8_gets_no_4_bit():
    assert [r.describe() for r in candidates(QuantConfig("nf4", blocksize=32))] == [
        "nf4 blocksize 32 double quant", "nf4 blocksize 32", "int8 threshold 6", "16-bit"
    ]  # fmt: skip
    assert [r.describe() for r in candidates(QuantConfig("int8"))] == ["int8 threshold 6", "16-bit"]


def test_a_written_table_is_read_back(tmp_path):
    path = tmp_path / "model.safetensors.costs.csv"
    recipes = candidates(QuantConfig("nf4"))
    costs = [Cost(layer, r, 7, 1e-3 / (i + 1)) for layer in ("img_in", "a.b") for i, r in enumerate(recipes[:-1])]
    write_costs(path, [*costs, Cost("img_in", recipes[-1], 9, 0.0)], "measured\nsomewhere")
    assert path.read_text().startswith("# measured\n# somewhere\nlayer,precision,squared_error\n")
    table = read_costs(path)
    assert [*table] == ["img_in", "a.b"]
    for cost in costs:
        assert table[cost.layer][cost.recipe.describe()] == pytest.approx(cost.squared_error, rel=1e-5)
    assert "16-bit" not in table["img_in"]


@pytest.mark.parametrize("fails", ["the disk", "the costs"])
def test_a_table_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, fails):
    path = tmp_path / "model.safetensors.costs.csv"
    write_costs(path, [Cost("img_in", QuantConfig("nf4"), 7, 1.0)])
    old = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def costs():
        yield Cost("img_in", QuantConfig("nf4"), 7, 2.0)
        if fails == "the costs":
            raise InterruptedError

    if fails == "the disk":
        # what a disk that is full may only say when the file is forced to it
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError if fails == "the disk" else InterruptedError):
        write_costs(path, costs())
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not name the columns"),
        ("layer,precision,squared_error\n", "is an empty table"),
        ("layer,precision,squared_error\nimg_in,nf4\n", "cannot be read"),
        ("layer,precision,squared_error\nimg_in,nf4,much\n", "cannot be read"),
        ("layer,precision,squared_error\nimg_in,nf4,nan\n", "squared error of img_in at nf4 is nan"),
        ("layer,precision,squared_error\nimg_in,nf4,-1\n", "squared error of img_in at nf4 is -1"),
        ("layer,precision,squared_error\nimg_in,nf4,inf\n", "squared error of img_in at nf4 is inf"),
        ("layer,precision,squared_error\nimg_in,nf4,1\nimg_in,nf4,2\n", "there twice"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_its_name(tmp_path, text, words):
    path = tmp_path / "wrong.costs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=words) as error:
        read_costs(path)
    assert "wrong.costs.csv" in str(error.value)
