"""What torch.compile is asked for, and whether this machine can do it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch._dynamo
import torch._inductor

from ...quant_core.errors import ConfigError
from ...quant_core.kernels.read_once import kernels_read_once

INDUCTOR = "inductor"
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
DYNAMIC = {"auto": None, "on": True, "off": False}
# torch lists some whether or not the package behind them is there
_PACKAGES = {"openxla": "torch_xla", "tvm": "tvm", "onnxrt": "onnxruntime"}
# for finding faults: torch does not list them, but takes them
_FAULT_FINDERS = ("aot_eager", "eager")
_RECOMPILE_LIMIT = 64
# Two kernels for each normalization, one of which holds a row in registers; the first step measures which is faster,
# and the cache on disk keeps it. By itself inductor writes one, the slower for sizes such as FLUX's (docs/speed.md).
_MORE_KERNELS = {"triton.multi_kernel": 1}
_NO_GRAPHS = "cudaMallocAsync"


def _backends() -> tuple[str, ...]:
    found = [
        name
        for name in torch._dynamo.list_backends()
        if name != INDUCTOR and (name not in _PACKAGES or importlib.util.find_spec(_PACKAGES[name]))
    ]
    return (INDUCTOR, *found, *_FAULT_FINDERS)


BACKENDS = _backends()


@dataclass(frozen=True)
class CompileSettings:
    """The inputs of the node.

    Attributes:
        mode: of inductor.
        regional: each block by itself.
        dynamic: ``auto``, ``on`` or ``off``.

    Raises:
        ConfigError: a value that is none of the choices, or a mode for another back end than inductor.
    """

    backend: str = INDUCTOR
    mode: str = "default"
    regional: bool = True
    fullgraph: bool = False
    dynamic: str = "auto"

    def __post_init__(self):
        # older hosts let any text through
        for name, choices in (("backend", BACKENDS), ("mode", MODES), ("dynamic", DYNAMIC)):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name} is {value!r}. Use one of {', '.join(choices)}.")
        if self.mode != "default" and self.backend != INDUCTOR:
            raise ConfigError(
                f"mode {self.mode} is one of inductor's, and backend is {self.backend}. Set mode to default."
            )

    @property
    def arguments(self) -> dict:
        """Of torch.compile, which takes either a mode or options: what a mode stands for is among the options."""
        dynamic, options = DYNAMIC[self.dynamic], None
        if self.backend == INDUCTOR:
            options = torch._inductor.list_mode_options(self.mode, dynamic)
            if not self.has_cuda_graphs:  # to measure beside them was not tried
                options = options | _MORE_KERNELS
        return {"backend": self.backend, "options": options, "fullgraph": self.fullgraph, "dynamic": dynamic}

    @property
    def has_cuda_graphs(self) -> bool:
        return self.backend == "cudagraphs" or self.mode in ("reduce-overhead", "max-autotune")

    def require_working(self, device: torch.device) -> None:
        """Compile and run a small function on ``device``; the second time in a process costs nothing.

        Raises:
            ConfigError: the back end is not there, or what it needs is missing: a compiler, Triton, a package; CUDA
                graphs with an allocator that has no room for them.
        """
        if self.has_cuda_graphs and device.type == "cuda" and torch.cuda.get_allocator_backend() == _NO_GRAPHS:
            wish = f"mode {self.mode}" if self.backend == INDUCTOR else f"backend {self.backend}"
            raise ConfigError(
                f"{wish} takes CUDA graphs, which PyTorch cannot keep in memory of {_NO_GRAPHS}, the allocator that "
                "ComfyUI asks for. Start ComfyUI with --disable-cuda-malloc, or set mode to default or "
                "max-autotune-no-cudagraphs and backend to inductor."
            )
        with while_compiling():
            try:
                torch.compile(_small, **self.arguments | {"fullgraph": True})(torch.ones(64, device=device))
            except Exception as error:
                # whatever a back end raises
                others = ", ".join(name for name in BACKENDS if name != self.backend)
                raise ConfigError(
                    f"backend {self.backend} does not work on {device}: {cause_of(error)} Install what it needs "
                    f"(inductor: Triton for a GPU, a C++ compiler such as g++ for a CPU), choose another backend "
                    f"({others}), or bypass Compile."
                ) from error


@contextlib.contextmanager
def while_compiling() -> Iterator[None]:
    """The options of dynamo that compiling here needs."""
    options = {
        # LLM.int8() counts its outlier columns
        "capture_dynamic_output_shape_ops": True,
        # blocks of one class share their code: with LoRAs on some layers of some, there are many variants
        _first_known("recompile_limit", "cache_size_limit"): _RECOMPILE_LIMIT,
    }
    with torch._dynamo.config.patch(options), kernels_read_once():
        yield


def cause_of(error: BaseException) -> str:
    """The first sentence of what a compiler's error was made from."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) not in (None, error):
        error = inner
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".") + "."


def _first_known(*names: str) -> str:
    return next(name for name in names if hasattr(torch._dynamo.config, name))


def _small(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x) * 2 + 1
