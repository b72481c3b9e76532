"""torch.compile through the host's own wrapper, per block or as a whole."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator

import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch._dynamo.exc import TorchDynamoException

from ...quant_core.errors import ConfigError
from .compile_progress import CompileProgress
from .compile_report import CompileReport, report_of
from .compile_settings import CompileSettings, cause_of, while_compiling
from .interrupt_compiling import cancellable_compiling
from .operations import PackedLinear, in_parts

KEY = "quantflux.compile"
_HOST_KEY = "torch.compile"
# Inputs of the host's FLUX and its blocks of which one dimension grows with the prompt. Marked, they are compiled for
# all lengths at once; without, the second length would be compiled for anew.
_PROMPT_DIMENSIONS = {"context": 1, "txt": 1, "x": 1, "pe": 2}
# Noise levels, one more than steps, which a graph of the whole model looks at on some hosts.
_SIGMAS = "sample_sigmas"
_PIXELS = 8  # of a picture, for each of a latent


def compiled_model(
    patcher: comfy.model_patcher.ModelPatcher, settings: CompileSettings, node_id: str | None = None
) -> tuple[comfy.model_patcher.ModelPatcher, CompileReport]:
    """A clone of ``patcher`` that samples with compiled modules, and the report of what that compiles.

    Compiling itself happens in the first step of sampling, which is when torch does it. Clones of one model share what
    was compiled.

    Args:
        node_id: which node shows the report after sampling.

    Raises:
        ConfigError: the back end does not work here, or the model has no blocks.
    """
    settings.require_working(patcher.load_device)
    static = "disable_dynamic" in inspect.signature(patcher.clone).parameters
    compiled = patcher.clone(disable_dynamic=True) if static else patcher.clone()
    keys = _blocks(compiled) if settings.regional else ["diffusion_model"]
    set_torch_compile_wrapper(compiled, keys=keys, **settings.arguments)
    report = report_of(compiled.model, settings, [compiled.get_model_object(key) for key in keys])
    progress = CompileProgress(len(keys))
    for module in _compiled_modules(compiled, keys):
        module.forward = _prepared(module, settings.regional, progress)
    _watch(compiled, settings, report, progress, node_id)
    return compiled, report


def _blocks(patcher: comfy.model_patcher.ModelPatcher) -> list[str]:
    """Names of the transformer's blocks, in the order in which they run."""
    transformer = patcher.get_model_object("diffusion_model")
    names = list(_listed(transformer, "diffusion_model", within=False))
    if not names:
        raise ConfigError(f"A {type(transformer).__name__} has no list of blocks to compile. Set regional to false.")
    return names


def _listed(module: torch.nn.Module, path: str, within: bool) -> Iterator[str]:
    """Names of the modules in the lists of ``module``. A U-Net's lists hold sequences, which the host goes through
    itself: there it is the lists within those that count, which are of transformer blocks.

    Args:
        within: whether ``module`` is a part of such a sequence.
    """
    for name, child in module.named_children():
        is_list = isinstance(child, torch.nn.ModuleList)
        if is_list and not any(isinstance(member, torch.nn.Sequential) for member in child):
            yield from (f"{path}.{name}.{i}" for i in range(len(child)))
        elif within or is_list or isinstance(child, torch.nn.Sequential):
            yield from _listed(child, f"{path}.{name}", within=True)


def _compiled_modules(patcher: comfy.model_patcher.ModelPatcher, keys: list[str]) -> list[torch.nn.Module]:
    """What the host's wrapper puts in the place of the modules: it only shows that while it runs."""
    model = patcher.model
    wrappers = patcher.get_wrappers(WrappersMP.APPLY_MODEL, _HOST_KEY)

    def seen():
        return [comfy.utils.get_attr(model, key) for key in keys]

    return WrapperExecutor.new_class_executor(seen, model, wrappers).execute()


def _prepared(module: torch.nn.Module, regional: bool, progress: CompileProgress) -> Callable:
    """The ``forward`` of a compiled module, after what has to happen outside of its graph."""
    forward, original = module.forward, module._orig_mod
    names = list(inspect.signature(original.forward).parameters)
    layers = [layer for layer in original.modules() if isinstance(layer, PackedLinear)]

    def prepared(*args, **kwargs):
        progress.begin_module()
        given = dict(zip(names, args, strict=False)) | kwargs
        inputs = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        sigmas = (given.get("transformer_options") or {}).get(_SIGMAS)
        if isinstance(sigmas, torch.Tensor) and sigmas.ndim:
            torch._dynamo.maybe_mark_dynamic(sigmas, 0)
        if not regional:
            # x is the latents, whose second dimension is channels
            inputs.pop("x", None)
        for name, dimension in _PROMPT_DIMENSIONS.items():
            if name in inputs and inputs[name].ndim > dimension:
                torch._dynamo.maybe_mark_dynamic(inputs[name], dimension)
        with contextlib.ExitStack() as stack:
            if regional and inputs:
                device = next(iter(inputs.values())).device
                for layer in layers:
                    if layer._parameters["weight"].device != device:
                        # one graph for blocks that are offloaded and blocks that are not
                        stack.enter_context(layer.lent(device))
            stack.enter_context(in_parts(layers))
            return forward(*args, **kwargs)

    return prepared


def _watch(
    patcher: comfy.model_patcher.ModelPatcher,
    settings: CompileSettings,
    report: CompileReport,
    progress: CompileProgress,
    node_id: str | None,
):
    """Have ``report`` kept while sampling, and told after it."""

    def apply_model(executor, x, t, c_concat=None, c_crossattn=None, *args, **kwargs):
        if settings.has_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        progress.begin_step()
        with while_compiling(), report.watching(_sizes(x, c_crossattn)), cancellable_compiling():
            try:
                predicted = executor(x, t, c_concat, c_crossattn, *args, **kwargs)
            except TorchDynamoException as error:
                raise ConfigError(
                    f"backend {settings.backend} could not compile the model: {cause_of(error)} "
                    + ("Set fullgraph to false" if settings.fullgraph else "Choose another backend")
                    + ", or bypass Compile."
                ) from error
        progress.end_step()
        return predicted

    def cleanup(patcher):
        report.tell(node_id)

    patcher.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, cleanup)


def _sizes(x: torch.Tensor, context: torch.Tensor | None) -> str:
    parts = [f"{x.shape[-1] * _PIXELS}×{x.shape[-2] * _PIXELS}"]
    if context is not None:
        parts.append(f"{context.shape[1]} text tokens")
    if x.shape[0] > 1:
        parts.append(f"batch {x.shape[0]}")
    return ", ".join(parts)
