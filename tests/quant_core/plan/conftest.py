"""Files of full size, of which only the headers can be read."""

import math
from contextlib import ExitStack, contextmanager

import pytest
from format_files import write_sparse
from full_sizes import FLUX_DEV, T5_XXL
from quantflux.quant_core.checkpoint import Checkpoint, Reader, open_checkpoint


class NoData(Reader):
    def get_tensor(self, name):
        raise AssertionError(f"the data of {name} was read")


class HeaderOnly(Checkpoint):
    """A checkpoint whose tensors cannot be read."""

    @contextmanager
    def reader(self):
        with ExitStack() as files:
            yield NoData(self.tensors, files)


def header_only(path) -> HeaderOnly:
    return HeaderOnly(**vars(open_checkpoint(path)))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory):
    """Files of FLUX.1-dev's and T5-XXL's sizes without data."""
    folder = tmp_path_factory.mktemp("full_size")
    for name, model in {"flux": FLUX_DEV, "t5": T5_XXL}.items():
        shapes = model.tensor_shapes()
        write_sparse(folder / name, {n: ("BF16", shape, 2 * math.prod(shape)) for n, shape in shapes.items()}, {})
    return header_only(folder / "flux"), header_only(folder / "t5")
