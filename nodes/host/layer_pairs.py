"""The layers that two models have in common: their weights without patches, and their outputs on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management as memory
import comfy.utils
import torch

from ...quant_core.layouts import is_packed
from ...quant_core.quality import Comparison

PART = "diffusion_model."


class OwnWeights(Mapping):
    """The weights of a MODEL's layers, by the name of the layer: without LoRAs and other patches.

    Packed ones are given as they are, the host's fp8 ones with their scale. Only weights of two and more dimensions
    count, and no norms, biases or tables. What another project has packed is in ``unreadable``.
    """

    def __init__(self, patcher: Any):
        self._patcher = patcher
        self._layers = patcher.model.diffusion_model
        self._shapes, self.unreadable = {}, set()
        for key, _ in self._layers.named_parameters(remove_duplicate=False):
            name = key.removesuffix(".weight")
            tensor = self._unpatched(key)
            if name == key or tensor.ndim < 2:
                continue
            if is_packed(tensor) or _is_scaled(tensor) or _is_plain(tensor):
                self._shapes[name] = tuple(tensor.shape)
            else:
                self.unreadable.add(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        tensor = self._unpatched(f"{name}.weight")
        if is_packed(tensor):
            return tensor
        if _is_scaled(tensor):
            return tensor.dequantize()
        scale = getattr(comfy.utils.get_attr(self._layers, name), "scale_weight", None)
        return tensor if scale is None else tensor.float() * scale.to(tensor.device).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def _unpatched(self, key: str) -> torch.Tensor:
        # looked up each time: the host moves weights, and patches them, while others are looked at. A clone of the
        # same model may have its patches on it
        if PART + key in self._patcher.backup:
            return self._patcher.backup[PART + key].weight
        if PART + key in self._patcher.hook_backup:
            return self._patcher.hook_backup[PART + key][0]
        return comfy.utils.get_attr(self._layers, key)


def common(reference: OwnWeights, model: OwnWeights) -> list[str]:
    """The layers that both have under one name, with weights of one shape."""
    return [name for name in reference if name in model and reference.shape(name) == model.shape(name)]


def room_to_compare(patcher: Any, weights: OwnWeights) -> torch.device:
    """The device of ``patcher``, once the host has made room there for comparing the largest of ``weights``."""
    largest = max((torch.Size(weights.shape(name)).numel() for name in weights), default=0)
    # both in float32 at most, and what dequantizing and the sums take
    memory.free_memory(4 * 4 * largest, patcher.load_device)
    return patcher.load_device


class OutputErrors:
    """What a model's layers make of the inputs that a reference's layers get, against what those make of them.

    So no error of an earlier layer is in it. A layer's LoRAs are in it, on either side.
    """

    def __init__(self, reference: Any, model: Any):
        self.shared = reference.model is model.model
        self._reference, self._model = reference, model
        self._found: dict[str, Comparison] = {}
        self._inside = False

    @property
    def possible(self) -> bool:
        """Whether both can be looked at in one run: two sets of LoRAs on one model cannot."""
        return not self.shared or self._reference.patches_uuid == self._model.patches_uuid

    @contextmanager
    def measured(self, names: list[str]) -> Iterator[Any]:
        """While inside, each run of the patcher that this gives compares the layers of these names.

        It is the reference, with the other model loaded beside it.
        """
        both = self._reference.clone()
        if not self.shared:
            # the host then loads the two together, as far as they fit
            both.set_additional_models("quantflux.quality", [self._model])
        hooks = [self._hook(name) for name in names]
        try:
            yield both
        finally:
            for hook in hooks:
                hook.remove()

    def errors(self) -> dict[str, float]:
        """Relative error of each layer that ran, over all its runs."""
        return {name: sums.relative_error for name, sums in self._found.items()}

    def _hook(self, name: str):
        ours, layer = (comfy.utils.get_attr(patcher.model, PART + name) for patcher in (self._reference, self._model))

        def compare(module, args, kwargs, output):
            # the same layer, where a model is compared with itself, would come here again
            if self._inside or not isinstance(output, torch.Tensor):
                return
            self._inside = True
            try:
                other = layer(*args, **kwargs)
            finally:
                self._inside = False
            self._found.setdefault(name, Comparison()).add(output, other)

        return ours.register_forward_hook(compare, with_kwargs=True)


def _is_scaled(tensor: torch.Tensor) -> bool:
    """Whether it is a quantized tensor of the host's own."""
    return type(tensor).__name__ == "QuantizedTensor" and not is_packed(tensor)


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_floating_point()
