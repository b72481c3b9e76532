"""Plain copies of models with packed weights, which stock nodes can merge, save and bake LoRAs into."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch

from ...quant_core.export import Provenance
from ...quant_core.layouts import dequantize, is_packed
from .between import give_back
from .conditioning import forget_conditioning
from .copying import ModelCopy, config_of_copy, patcher_for, require_unheld, room_for
from .operations import PackedLinear, packed_linears
from .progress import progress_bar


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
    with patcher.use_ejected():
        plan = _Dequantizing(patcher, dtype)
        require_unheld(patcher, plan, packed_linears(patcher.model), input_name, "Dequantize")
        sizes = plan.sizes()
        device = room_for(
            patcher, sum(sizes), max(sizes), f"{input_name} cannot be dequantized: its plain weights take",
            "Close other programs, choose a 16-bit dtype, or use the packed model as it is.",
        )  # fmt: skip
        # looked at anew: making room may have moved the packed weights
        plain = _Dequantizing(patcher, dtype, device).copied(patcher.model)
    if hasattr(plain, "model_config"):
        _set_up(plain, patcher.load_device, dtype)
    result = patcher_for(plain, patcher, comfy.model_patcher.ModelPatcher, device)
    forget_conditioning(result)
    return result


def dequantized_clip(clip: comfy.sd.CLIP, dtype: torch.dtype | None = None) -> comfy.sd.CLIP:
    """A CLIP of plain weights: :func:`dequantized_model` for its encoders. Those without packed weights keep theirs."""
    if not has_packed_weights(clip.patcher):
        return clip
    result = clip.clone()
    result.patcher = dequantized_model(clip.patcher, dtype, "clip")
    result.cond_stage_model = result.patcher.model
    return result


class _Dequantizing(ModelCopy):
    """A copy with plain weights, and with the host's Linear in the place of ours."""

    def __init__(
        self, patcher: comfy.model_patcher.ModelPatcher, dtype: torch.dtype | None, device: torch.device | None = None
    ):
        super().__init__(patcher, device)
        self._dtype = dtype
        packed = [key for key, tensor in self.weights.items() if is_packed(tensor)]
        self._parts = {key.split(".")[0] for key in packed}
        self._done, self._total = 0, len(packed)
        self._progress = progress_bar()

    def sizes(self) -> list[int]:
        """Bytes of each parameter of the copy."""
        return [tensor.numel() * self._target(key).itemsize for key, tensor in self.weights.items()]

    def layer(self, module: torch.nn.Module, path: str) -> torch.nn.Module | None:
        if not isinstance(module, PackedLinear):
            return None
        linear = comfy.ops.manual_cast.Linear(module.in_features, module.out_features, module.bias is not None, "meta")
        for name, parameter in module._parameters.items():
            if parameter is not None:
                linear._parameters[name] = torch.nn.Parameter(self.tensor(f"{path}.{name}"), requires_grad=False)
        return linear.train(module.training)

    def tensor(self, key: str) -> torch.Tensor:
        tensor, dtype = self.weights[key], self._target(key)
        if not is_packed(tensor):
            return tensor.detach().to(self.device, dtype, copy=True)
        self._done += 1
        self._progress(self._done, self._total)
        packed = tensor if tensor.device == self.load_device else tensor.to(self.load_device)
        return dequantize(packed, dtype).to(self.device)

    def settle(self, module: torch.nn.Module, path: str) -> None:
        give_back(module)
        for name, value in list(vars(module).items()):
            if isinstance(value, Provenance):
                # of a chosen dtype, so no longer as the file has it
                dtypes = value.dtypes if self._dtype is None else {}
                setattr(module, name, replace(value, config=replace(value.config, precision="none"), dtypes=dtypes))
            elif name == "dtype" and self._dtype is not None and path.split(".")[0] in self._parts:
                module.dtype = self._dtype

    def _target(self, key: str) -> torch.dtype:
        tensor = self.weights[key]
        chosen = self._dtype is not None and key.split(".")[0] in self._parts and tensor.is_floating_point()
        return self._dtype if chosen else tensor.dtype


def _set_up(model: torch.nn.Module, device: torch.device, dtype: torch.dtype | None):
    """What the host would have configured, had it loaded the plain weights itself."""
    config = config_of_copy(model)
    config.custom_operations = comfy.ops.manual_cast
    model.memory_usage_factor = config.memory_usage_factor
    if dtype is not None:
        manual_cast = memory.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
        config.set_inference_dtype(dtype, manual_cast)
        model.manual_cast_dtype = manual_cast
