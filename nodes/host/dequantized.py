"""Plain copies of models with packed weights, which stock nodes can merge, save and bake LoRAs into."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace

import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch

from ...quant_core.errors import ConfigError
from ...quant_core.export import Provenance
from ...quant_core.layouts import dequantize, is_packed
from .memory_state import room_for
from .operations import PackedLinear, packed_linears
from .progress import progress_bar

# what patchers keep on the model that they share, of which a copy has none yet
_STATE_OF_LOADING = (
    "current_patcher", "current_weight_patches_uuid", "low_rank_uuid", "lowvram_patch_counter", "model_lowvram",
    "model_loaded_weight_memory", "model_offload_buffer_memory",
)  # fmt: skip
# what a patcher keeps of the model that it is for
_STATE_OF_PATCHER = (
    "model", "size", "parent", "pinned", "backup", "object_patches_backup", "hook_backup", "hook_patches_backup",
    "cached_hook_patches", "current_hooks", "is_injected",
)  # fmt: skip


def has_packed_weights(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether this project packed weights of the model."""
    return bool(packed_linears(patcher.model))


def dequantized_model(
    patcher: comfy.model_patcher.ModelPatcher, dtype: torch.dtype | None = None, input_name: str = "model"
) -> comfy.model_patcher.ModelPatcher:
    """The host's own MODEL of plain weights, with the patches, options and wrappers of ``patcher``.

    Layers are dequantized one after the other on the model's device. ``patcher`` keeps its packed weights.

    Args:
        dtype: of the weights; None: that which each was quantized from. Another one is also that of the biases, norms
            and embeddings beside them, and the one that the model runs in where the device can.
        input_name: what an error calls the model.

    Returns:
        ``patcher`` itself where nothing is packed.

    Raises:
        ConfigError: the model has been compiled, or another node holds its packed layers.
        MemoryError: the plain weights fit neither beside what sampling needs on the device, nor in the main memory.
    """
    if not has_packed_weights(patcher):
        return patcher
    _require_unwrapped(patcher, input_name)
    with patcher.use_ejected():
        device = room_for(patcher, _Copying(patcher, dtype).sizes(), input_name)
        # looked at anew: making room may have moved the packed weights
        plain = _Copying(patcher, dtype, device).copied(patcher.model)
    for name in _STATE_OF_LOADING:
        vars(plain).pop(name, None)
    plain.current_patcher, plain.device = None, device
    if hasattr(plain, "model_config"):
        _set_up(plain, patcher.load_device, dtype)

    fresh = comfy.model_patcher.ModelPatcher(plain, patcher.load_device, patcher.offload_device)
    result = patcher.clone()
    result.__class__ = comfy.model_patcher.ModelPatcher
    for name in _STATE_OF_PATCHER:
        if hasattr(fresh, name):
            setattr(result, name, getattr(fresh, name))
    if device != patcher.offload_device and not memory.is_device_cpu(device):
        # in place already: tell the host, so that it counts the model and can unload it
        result.patch_model(device)
        memory.load_models_gpu([result], force_full_load=True)
    return result


def dequantized_clip(clip: comfy.sd.CLIP, dtype: torch.dtype | None = None) -> comfy.sd.CLIP:
    """A CLIP of plain weights: :func:`dequantized_model` for its encoders. Those without packed weights keep theirs."""
    if not has_packed_weights(clip.patcher):
        return clip
    result = clip.clone()
    result.patcher = dequantized_model(clip.patcher, dtype, "clip")
    result.cond_stage_model = result.patcher.model
    return result


class _Copying:
    """A copy of a patcher's model as it is without patches: with plain weights, of the same modules otherwise."""

    def __init__(
        self, patcher: comfy.model_patcher.ModelPatcher, dtype: torch.dtype | None, device: torch.device | None = None
    ):
        self.device = device  # where the copy goes
        self._load_device = patcher.load_device
        self._dtype = dtype
        self._modules: dict[int, torch.nn.Module] = {}
        # a clone of the same model may have its patches on it at the moment
        self._weights = {key: backup[0] for key, backup in patcher.hook_backup.items()}
        self._weights |= {key: backup.weight for key, backup in patcher.backup.items()}
        self._objects = dict(patcher.object_patches_backup)
        named = patcher.model.named_parameters(remove_duplicate=False)
        self._weights = {key: self._weights.get(key, tensor) for key, tensor in named}
        packed = [key for key, tensor in self._weights.items() if is_packed(tensor)]
        self._parts = {key.split(".")[0] for key in packed}
        self._done, self._total = 0, len(packed)
        self._progress = progress_bar()

    def sizes(self) -> list[int]:
        """Bytes of each parameter of the copy."""
        return [tensor.numel() * self._target(key, tensor).itemsize for key, tensor in self._weights.items()]

    def copied(self, module: torch.nn.Module, path: str = "") -> torch.nn.Module:
        """The copy of the module at ``path``; the same one for a module that is in several places."""
        if known := self._modules.get(id(module)):
            return known
        prefix = f"{path}." if path else ""
        plain = self._modules[id(module)] = _shallow(module)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                parameter = torch.nn.Parameter(self._plain(prefix + name), requires_grad=False)
            plain._parameters[name] = parameter
        for name, buffer in module._buffers.items():
            plain._buffers[name] = None if buffer is None else buffer.to(self.device, copy=True)
        for name, child in module._modules.items():
            child = self._objects.get(prefix + name, child)
            plain._modules[name] = None if child is None else self.copied(child, prefix + name)
        comfy.model_patcher.wipe_lowvram_weight(plain)
        vars(plain).pop("comfy_patched_weights", None)
        for name, value in list(vars(plain).items()):
            if isinstance(value, Provenance):
                # of a chosen dtype, so no longer as the file has it
                dtypes = value.dtypes if self._dtype is None else {}
                setattr(plain, name, replace(value, config=replace(value.config, precision="none"), dtypes=dtypes))
            elif name == "dtype" and self._dtype is not None and prefix.split(".")[0] in self._parts:
                plain.dtype = self._dtype
        if not path:
            for name, value in self._objects.items():
                if not isinstance(value, torch.nn.Module):
                    comfy.utils.set_attr(plain, name, value)
        return plain

    def _plain(self, key: str) -> torch.Tensor:
        tensor = self._weights[key]
        dtype = self._target(key, tensor)
        if not is_packed(tensor):
            return tensor.detach().to(self.device, dtype, copy=True)
        self._done += 1
        self._progress(self._done, self._total)
        packed = tensor if tensor.device == self._load_device else tensor.to(self._load_device)
        return dequantize(packed, dtype).to(self.device)

    def _target(self, key: str, tensor: torch.Tensor) -> torch.dtype:
        chosen = self._dtype is not None and key.split(".")[0] in self._parts and tensor.is_floating_point()
        return self._dtype if chosen else tensor.dtype


def _shallow(module: torch.nn.Module) -> torch.nn.Module:
    """Another module of the same attributes, with tables of tensors, modules and hooks of its own, and of the same
    class; in the place of our Linear the host's."""
    if isinstance(module, PackedLinear):
        linear = comfy.ops.manual_cast.Linear(module.in_features, module.out_features, module.bias is not None, "meta")
        return linear.train(module.training)
    shallow = module.__class__.__new__(module.__class__)
    tables = {n: v.copy() for n, v in vars(module).items() if n[0] == "_" and type(v) in (dict, OrderedDict, set)}
    vars(shallow).update(vars(module) | tables)
    return shallow


def _set_up(model: torch.nn.Module, device: torch.device, dtype: torch.dtype | None):
    """What the host would have configured, had it loaded the plain weights itself."""
    config = model.model_config = copy.copy(model.model_config)
    config.unet_config = dict(config.unet_config)
    config.custom_operations = comfy.ops.manual_cast
    if dtype is not None:
        manual_cast = memory.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
        config.set_inference_dtype(dtype, manual_cast)
        model.manual_cast_dtype = manual_cast


def _require_unwrapped(patcher: comfy.model_patcher.ModelPatcher, input_name: str):
    """What was made from the packed layers, and kept outside of the model, would go on using them."""
    wrappers = [key for by_key in patcher.wrappers.values() for key, found in by_key.items() if found]
    modules = [value for value in patcher.object_patches.values() if isinstance(value, torch.nn.Module)]
    if "torch.compile" in wrappers or any(packed_linears(module) for module in modules):
        raise ConfigError(
            f"{input_name} was compiled, or another node wrapped its packed layers, and would go on using those. "
            "Put Dequantize right behind the loader, and that node behind Dequantize."
        )
