"""LLM.int8()'s kernels, compiled in threads while text is still encoded, so that the first step does not wait for all.

Triton compiles a kernel when it is launched first, which takes a second or two for each size of product. Most of that
is in compilers that let Python go on.
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
from collections.abc import Callable

import torch

from . import triton_available
from .int8_configs import OUTLIER_CAPACITY, MatmulConfig, choose

logger = logging.getLogger(__name__)

TOKENS = (1, 256, 4352)  # modulation's, a prompt's, a picture's
SHAPES = ((9216, 3072), (3072, 12288))  # of weights: wide ones and long ones
WAIT = 60  # seconds, for what another thread compiles; longer, and it is compiled once more

_begun: dict[tuple, list[concurrent.futures.Future]] = {}  # by device, dtype and whether there is a threshold


def compile_ahead(device: torch.device, dtype: torch.dtype, threshold: float) -> None:
    """Begin to compile what FLUX's layers are multiplied by on ``device``; nothing where our kernels do not run.

    Args:
        dtype: of the inputs and biases.
    """
    key = device, dtype, threshold > 0
    if not triton_available(device) or key in _begun:
        return
    tasks = _tasks(device, dtype, threshold)
    pool = concurrent.futures.ThreadPoolExecutor(len(tasks), "quantflux-int8")
    _begun[key] = [pool.submit(task) for task in tasks]
    pool.shutdown(wait=False)


def wait() -> None:
    """Until all that was begun is compiled. What failed there fails again where it is needed, and is told then."""
    tasks = [task for tasks in _begun.values() for task in tasks]
    concurrent.futures.wait(tasks, WAIT)
    for task in tasks:
        if task.done() and (error := task.exception()):
            logger.debug("An int8 kernel was not compiled ahead: %s", error)


def _tasks(device: torch.device, dtype: torch.dtype, threshold: float) -> list[Callable[[], None]]:
    """What compiles, each for a thread: Triton keeps what it compiled of a kernel, and one thread at a time may ask."""
    capability = torch.cuda.get_device_capability(device)
    configs = {choose(tokens, *shape, dtype.itemsize, capability) for tokens in TOKENS for shape in SHAPES}
    kinds: dict[str, list[MatmulConfig]] = {}
    for config in configs:
        kinds.setdefault(config.kernel, []).append(config)
    products = [functools.partial(_multiply, kind, device, dtype, threshold > 0) for kind in kinds.values()]
    return [*products, functools.partial(_quantize, device, dtype, threshold)]


def _multiply(configs: list[MatmulConfig], device: torch.device, dtype: torch.dtype, outliers: bool) -> None:
    from .int8_quantize import Outliers
    from .int8_triton import product

    tokens, rows, columns = 16, 256, SHAPES[0][1]
    with torch.cuda.device(device):
        codes, weight = (torch.zeros(n, columns, dtype=torch.int8, device=device) for n in (tokens, rows))
        absmax, scale = (torch.zeros(n, device=device) for n in (tokens, rows))
        bias = torch.zeros(rows, dtype=dtype, device=device)
        x = apart = None
        if outliers:
            x = torch.zeros(tokens, columns, dtype=dtype, device=device)
            # none of them: the count in the last place is 0
            listed = torch.zeros(columns + 1, dtype=torch.int32, device=device)
            apart = Outliers(listed, torch.zeros(tokens + rows, OUTLIER_CAPACITY, dtype=dtype, device=device))
        for config in configs:
            product(codes, absmax, weight, scale, bias, dtype, x, apart, config=config)


def _quantize(device: torch.device, dtype: torch.dtype, threshold: float) -> None:
    from .int8_quantize import quantize_rows

    tokens, rows = 16, 32
    with torch.cuda.device(device):
        for _, columns in SHAPES:
            x = torch.zeros(tokens, columns, dtype=dtype, device=device)
            weight = torch.zeros(rows, columns, dtype=torch.int8, device=device)
            quantize_rows(x, weight, torch.zeros(rows, device=device), threshold)
