"""The host's model patcher, taught that a packed weight is never changed in place."""

from __future__ import annotations

import comfy.model_patcher
import comfy.utils

from ...quant_core.layouts import is_packed
from .operations import packed_linears

LowVramPatch = comfy.model_patcher.LowVramPatch


class PackedModelPatcher(comfy.model_patcher.ModelPatcher):
    """A static ModelPatcher for models with packed weights.

    The stock patcher bakes a LoRA into a resident weight; on a packed one that has no effect and raises no error.
    Here patches of packed weights, resident or offloaded, are applied to the dequantized weight at each use.
    """

    def patch_weight_to_device(self, key, *args, **kwargs):
        weight = comfy.utils.get_attr(self.model, key)
        if is_packed(weight):
            return weight
        return super().patch_weight_to_device(key, *args, **kwargs)

    def pin_weight_to_device(self, key):
        # the host would pin as many bytes as the weight has at 16 bit, beyond the end of the packed ones
        if not is_packed(comfy.utils.get_attr(self.model, key)):
            super().pin_weight_to_device(key)

    def load(self, *args, **kwargs):
        super().load(*args, **kwargs)
        self._attach_patches()

    def partially_unload(self, *args, **kwargs):
        freed = super().partially_unload(*args, **kwargs)
        self._attach_patches()
        return freed

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for module in packed_linears(self.model).values():
                module.weight_function = []
        return super().unpatch_model(device_to, unpatch_weights)

    def _attach_patches(self):
        """Give every packed weight that has patches exactly one function that applies them.

        The host hangs its own on layers that it offloads, drops them from layers that it loads, and adds one more
        when it unloads a layer that had one.
        """
        for name, module in packed_linears(self.model).items():
            key = f"{name}.weight"
            others = [f for f in module.weight_function if not (isinstance(f, LowVramPatch) and f.key == key)]
            module.weight_function = [LowVramPatch(key, self.patches), *others] if key in self.patches else others
