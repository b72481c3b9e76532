"""What can be saved of a MODEL or a CLIP, and where the host wants it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import comfy.utils
import folder_paths
import torch

from ...quant_core.errors import ConfigError
from ...quant_core.export import Provenance, provenance_of
from ...quant_core.export.errors import explained
from ...quant_core.source import Source
from .folders import DEEPEST
from .operations import packed_linears

_PROVENANCE = "quantflux_provenance"
# where the host keeps its loaders' files below the output folder
TRANSFORMERS, TEXT_ENCODERS = "diffusion_models", "clip"
_LORA = (
    "{input} has LoRAs or other patches on it. They are kept beside the quantized weights, not in them, and would be "
    "lost: packing them into the weights would round most of them away. Connect {input} from before the LoRA, and load "
    "the LoRA onto the saved model again."
)
_ROUNDED = (
    "{name} of {input} was rounded from {stored} to {held} when it was loaded, as ComfyUI's flag {flag} asks, and its "
    "own values are gone. Start ComfyUI without {flag}, load the model again, and save it then."
)


def remember(module: torch.nn.Module, source: Source | Provenance) -> None:
    """Keep with a loaded model what saving has to know of its files. Clones of its patcher share ``module``."""
    setattr(module, _PROVENANCE, source if isinstance(source, Provenance) else provenance_of(source))


def transformer_to_save(model: Any) -> tuple[dict[str, torch.Tensor], Provenance]:
    """(native tensors, where they came from) of a MODEL.

    Raises:
        ConfigError: this project did not load it, it is no FLUX.1, or it has patches.
    """
    transformer = getattr(model.model, "diffusion_model", None)
    if not hasattr(transformer, _PROVENANCE) and packed_linears(model.model):
        raise ConfigError(
            f"model is a {type(model.model).__name__}, and of packed transformers only FLUX.1 can be saved. "
            "Keep its 16-bit file, and quantize it with Quantize Model whenever it is loaded."
        )
    return _to_save(model, transformer, "diffusion_model.", "model", "Load Quantized Transformer", "ModelSave")


def text_encoder_to_save(clip: Any) -> tuple[dict[str, torch.Tensor], Provenance]:
    """(tensors by transformers' names, where they came from) of the T5 in a CLIP.

    Raises:
        ConfigError: this project did not load it, it has patches, or the host rounded it to fp8.
    """
    encoder = getattr(getattr(clip.cond_stage_model, "t5xxl", None), "transformer", None)
    return _to_save(clip.patcher, encoder, "t5xxl.transformer.", "clip", "Load Quantized T5", "CLIPSave")


def new_path(folder: str, prefix: str, suffix: str) -> tuple[str, str]:
    """(a path that is not there yet, the same below the output folder) for a model in the output folder's ``folder``.

    Workflows are shared, so the ``prefix`` is not trusted: it cannot leave that folder.

    Args:
        prefix: the beginning of the name, perhaps after folders; the host's marks, such as ``%year%``, are filled in.
        suffix: what the name ends in; empty for a model folder.

    Raises:
        ConfigError: the prefix is no name in that folder, or the loaders would not look for a model folder there.
        SaveError: the folder cannot be read or made.
    """
    root = os.path.join(folder_paths.get_output_directory(), folder)
    name = os.path.basename(os.path.normpath(prefix))
    if not prefix.strip() or not prefix.isprintable() or name.startswith(".") or os.path.isabs(prefix):
        raise ConfigError(
            f"filename_prefix {prefix!r} is no file name. Write a name, such as quantflux or mine/quantflux."
        )
    above = os.path.normpath(prefix).count(os.sep)
    if not suffix and above >= DEEPEST:
        raise ConfigError(
            f"filename_prefix {prefix!r} has {above} folders before the name, and the loaders look for model folders "
            f"behind at most {DEEPEST - 1}. Write fewer folders, or save a single file."
        )
    try:
        where, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError as error:
        raise explained(os.path.join(root, os.path.normpath(prefix)), error) from error
    except Exception as error:
        # the host raises plain Exceptions
        raise ConfigError(
            f"filename_prefix {prefix!r} cannot be used: it has to stay within {folder} in the output folder. "
            "Write a name, such as quantflux or mine/quantflux."
        ) from error
    while os.path.lexists(path := os.path.join(where, f"{name}_{counter:05}_{suffix}")):
        counter += 1
    return path, "/".join([folder, *subfolder.replace("\\", "/").split("/"), os.path.basename(path)]).replace("//", "/")


def _to_save(
    patcher: Any, module: torch.nn.Module | None, prefix: str, input_name: str, loader: str, stock: str
) -> tuple[dict[str, torch.Tensor], Provenance]:
    provenance = getattr(module, _PROVENANCE, None)
    if provenance is None:
        raise ConfigError(
            f"{input_name} was not loaded by {loader}, so there is no quantized model to save. "
            f"Save it with the host's own {stock}, or load it with {loader}."
        )
    if patcher.patches or getattr(patcher, "hook_patches", None):
        raise ConfigError(_LORA.format(input=input_name))
    # another clone of the same model may have its LoRA on it at the moment; these are the weights without
    originals = getattr(patcher, "backup", {})
    tensors = {}
    for name in provenance.model.tensor_shapes():
        tensor, stored = _tensor(module, name, prefix, originals), provenance.dtypes.get(name)
        if stored is not None and tensor.dtype.itemsize == 1 < stored.itemsize:
            held = str(tensor.dtype).removeprefix("torch.")
            flag = f"--{held.replace('float8', 'fp8')}-text-enc"
            stored = str(stored).removeprefix("torch.")
            raise ConfigError(_ROUNDED.format(name=name, input=input_name, stored=stored, held=held, flag=flag))
        tensors[name] = _as_stored(tensor, stored)
    return tensors, provenance


def _tensor(module: torch.nn.Module, name: str, prefix: str, originals: Mapping[str, Any]) -> torch.Tensor:
    # newer hosts call the scale of a norm its weight
    for own in (name, name.removesuffix(".scale") + ".weight"):
        if prefix + own in originals:
            return originals[prefix + own].weight
        try:
            return comfy.utils.get_attr(module, own)
        except AttributeError:
            continue
    raise ConfigError(f"The model has no {name} any more: another node changed it. Save it right after its loader.")


def _as_stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """``tensor`` in the ``dtype`` of its file, where that keeps every bit: the host holds some in a wider one."""
    if dtype is None or dtype == tensor.dtype:
        return tensor
    stored = tensor.detach().to(dtype)
    return stored if torch.equal(stored.to(tensor.dtype), tensor) else tensor
