"""The host's model patcher, taught that a packed weight is never changed in place."""

from __future__ import annotations

from collections import namedtuple

import comfy.lora
import comfy.model_management as memory
import comfy.model_patcher
import comfy.utils
import torch

from ...quant_core.layouts import dequantize, is_packed, nbytes
from ...quant_core.lora import Branch, merge, merged_nbytes
from .lora import branches, changes_shape, counted_together
from .offload import pinned
from .operations import PackedLinear, packed_linears

LowVramPatch = comfy.model_patcher.LowVramPatch
Backup = namedtuple("Backup", ("weight", "inplace_update"))  # what the host keeps of a weight that it patches


class PackedWeightsError(ValueError):
    """Something was asked of packed weights that only plain ones can do."""


class PackedModelPatcher(comfy.model_patcher.ModelPatcher):
    """A static ModelPatcher for models with packed weights.

    The stock patcher bakes a LoRA into a resident weight; on a packed one that has no effect and raises no error. Here
    plain LoRAs of packed weights, resident or offloaded, become one low-rank branch per layer; all other patches are
    applied to the dequantized weight at each use.
    """

    # (patches_uuid, layer -> its patches told apart): comparing matrices takes time
    _told_apart: tuple[object, dict[str, tuple[list, list[Branch]]]] = (None, {})

    def model_size(self):
        """Bytes of the model with the LoRAs of this patcher, whichever are attached at the moment."""
        if self.size <= 0:
            self.size = memory.module_size(self.model) - self._attached_nbytes()
        return self.size + self._low_rank_nbytes() + sum(self._unpacked().values())

    def clone(self, *args, **kwargs):
        clone = super().clone(*args, **kwargs)
        # the host hands on what model_size() says, branches included
        clone.size = self.size
        clone._told_apart = self._told_apart
        return clone

    def patch_weight_to_device(self, key, *args, **kwargs):
        weight = comfy.utils.get_attr(self.model, key)
        if key in self.backup and is_packed(self.backup[key].weight):
            return weight  # unpacked and patched already
        if is_packed(weight):
            if changes_shape(self.patches.get(key, [])):
                self._unpack_and_patch(key, weight)
            return weight
        return super().patch_weight_to_device(key, *args, **kwargs)

    def pin_weight_to_device(self, key):
        weight = comfy.utils.get_attr(self.model, key)
        if not is_packed(weight):
            super().pin_weight_to_device(key)
        # the host itself would pin as many bytes as the weight has at 16 bit, beyond the end of the packed ones
        elif key not in self.pinned and (found := pinned(weight)):
            self._layer(key).hold(*found)
            self.pinned.add(key)

    def unpin_weight(self, key):
        layer = self._layer(key)
        if key in self.pinned and key.endswith(".weight") and getattr(layer, "pinned_block", None) is not None:
            memory.unpin_memory(layer.pinned_block)
            layer.pinned_block = None
            self.pinned.remove(key)
        else:
            super().unpin_weight(key)

    def get_key_patches(self, *args, **kwargs):
        self._refuse("merged into another model")
        return super().get_key_patches(*args, **kwargs)

    def add_hook_patches(self, *args, **kwargs):
        self._refuse("changed by hooks while sampling", "Use LoraLoader for the whole picture, or put")
        return super().add_hook_patches(*args, **kwargs)

    def load(self, *args, full_load=False, **kwargs):
        self._attach_branches()
        before = self._unpacked()
        super().load(*args, full_load=full_load, **kwargs)
        self._attach_functions()
        if not full_load:
            # the host measured these while they were packed
            now = self._unpacked()
            self.model.model_loaded_weight_memory += sum(now[key] for key in now.keys() - before.keys())
        self.model.has_weight_wrappers = bool(self.weight_wrapper_patches)

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        if force_patch_weights:
            self._refuse("saved by the host's nodes", "Use Save Quantized Model, or put")
        attached = self.model.current_weight_patches_uuid
        if attached is not None and attached != self.patches_uuid and self._can_swap_patches():
            # the host would move the whole model off the device and back
            try:
                self._swap_patches()
            except BaseException:
                # as the host does where loading fails: a mix of two clones' patches would be taken for either
                self.detach()
                raise
        return super().partially_load(device_to, extra_memory, force_patch_weights)

    def _load_list(self, *args, **kwargs):
        # The host keeps room free for what offloaded layers take while they are used, several at a time: beside their
        # bytes a patched weight in float32 and, from 0.5 on, an unpacked one. Branches need neither, and what is
        # unpacked is unpacked one at a time, in the room that sampling was measured to need.
        whole = {f"{name}.weight" for name, (patches, _) in self._patches_of_layers().items() if patches}
        listed = []
        for *before, in_use, held, name, module, parameters in super()._load_list(*args, **kwargs):
            if isinstance(module, PackedLinear) and is_packed(module.weight) and f"{name}.weight" not in whole:
                in_use = held
            listed.append((*before, in_use, held, name, module, parameters))
        return listed

    def partially_unload(self, *args, **kwargs):
        freed = super().partially_unload(*args, **kwargs)
        self._attach_functions()
        return freed

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for layer in self._layers().values():
                layer.weight_function = []
                layer.low_rank = None
            self.model.low_rank_uuid = None
        return super().unpatch_model(device_to, unpatch_weights)

    def _refuse(self, what: str, remedy: str = "Put"):
        """What the host does in place, or with weights as they lie there, fails or is silently lost on packed ones."""
        if self._layers():
            raise PackedWeightsError(
                f"This model's weights are packed, and packed weights cannot be {what}. "
                f"{remedy} a Dequantize node behind the loader."
            )

    def _layers(self) -> dict[str, PackedLinear]:
        """The layers whose own weight is packed, also where a patch that changes its shape stands in its place."""
        layers = packed_linears(self.model)
        for key, backup in self.backup.items():
            if is_packed(backup.weight):
                name = key.removesuffix(".weight")
                layers[name] = comfy.utils.get_attr(self.model, name)
        return layers

    def _unpacked(self) -> dict[str, int]:
        """Packed weights in whose place a plain one of another size stands -> how many bytes larger that is."""
        return {
            key: comfy.utils.get_attr(self.model, key).nbytes - nbytes(backup.weight)
            for key, backup in self.backup.items()
            if is_packed(backup.weight)
        }

    def _layer(self, key: str) -> torch.nn.Module:
        return comfy.utils.get_attr(self.model, key.rpartition(".")[0])

    def _own_weight(self, name: str) -> torch.Tensor:
        key = f"{name}.weight"
        return self.backup[key].weight if key in self.backup else comfy.utils.get_attr(self.model, key)

    def _patches_of_layers(self) -> dict[str, tuple[list, list[Branch]]]:
        """Packed layer -> its patches for the whole weight, and its branches: one of the two is empty."""
        known, found = self._told_apart
        if known != self.patches_uuid:
            found = {}
            for name in self._layers():
                key = f"{name}.weight"
                if key in self.patches:
                    patches = counted_together(self.patches[key])
                    plain = branches(key, patches, tuple(self._own_weight(name).shape))
                    found[name] = (patches, []) if plain is None else ([], plain)
            self._told_apart = self.patches_uuid, found
        return found

    def _low_rank_nbytes(self) -> int:
        """Bytes of the branches that this patcher's patches make."""
        layers = self._layers()
        return sum(
            merged_nbytes(plain, layers[name].out_features, self._dtype(layers[name]))
            for name, (_, plain) in self._patches_of_layers().items()
        )

    def _dtype(self, layer: PackedLinear) -> torch.dtype:
        """What the layer computes in: the dtype of its inputs, where no other is asked for."""
        return layer.inner_dtype or getattr(self.model, "manual_cast_dtype", None) or layer.weight.dtype

    def _attach_branches(self):
        """Give every packed layer the branch that its patches make, where the layer is."""
        if getattr(self.model, "low_rank_uuid", None) == self.patches_uuid:
            return
        patches = self._patches_of_layers()
        self.model.low_rank_uuid = None  # until all of them are there
        for name, layer in self._layers().items():
            _, plain = patches.get(name, ([], []))
            layer.low_rank = merge(plain, layer.out_features, self._dtype(layer), layer.weight.device)
        self.model.low_rank_uuid = self.patches_uuid

    def _attach_functions(self):
        """Give every packed layer with patches of other kinds exactly one function that applies them.

        The host hangs its own on layers that it offloads, drops them from layers that it loads, and adds one more
        when it unloads a layer that had one.
        """
        patches = self._patches_of_layers()
        for name, layer in self._layers().items():
            key = f"{name}.weight"
            others = [f for f in layer.weight_function if not (isinstance(f, LowVramPatch) and f.key == key)]
            whole, _ = patches.get(name, ([], []))
            if changes_shape(whole):
                if is_packed(layer.weight):
                    self._unpack_and_patch(key, layer.weight)
                whole = []
            layer.weight_function = [LowVramPatch(key, {key: whole}), *others] if whole else others

    def _unpack_and_patch(self, key: str, weight: torch.Tensor):
        """Put a plain, patched weight in the place of a packed one, which is kept as the backup.

        Only where a patch makes the weight another size: the host then asks the weight how many channels there are.
        """
        self.backup[key] = Backup(weight.to(self.offload_device), False)
        patched = comfy.lora.calculate_weight(self.patches[key], dequantize(weight, torch.float32), key)
        comfy.utils.set_attr_param(self.model, key, patched.to(weight.dtype))

    def _can_swap_patches(self) -> bool:
        """Whether all layers are on the device, and patches are all that is on them.

        Of a model that is there in part, the host loads more in an order of its own, in which layers that have been
        patched may come late: it would hang their patches on them once more.
        """
        wrapped = self.weight_wrapper_patches or getattr(self.model, "has_weight_wrappers", False)
        return not self.model.model_lowvram and self.model.model_loaded_weight_memory > 0 and not wrapped

    def _swap_patches(self):
        """Put this patcher's patches in the place of those that are on the model, with every layer where it is."""
        before = self._attached_nbytes()
        for key, backup in self.backup.items():
            weight = comfy.utils.get_attr(self.model, key)
            comfy.utils.set_attr_param(self.model, key, backup.weight.to(weight.device))
        self.backup.clear()
        self._attach_branches()
        for name, module in self.model.named_modules():
            if getattr(module, "comfy_patched_weights", False):
                for parameter, tensor in module.named_parameters(recurse=False):
                    if not is_packed(tensor):
                        self.patch_weight_to_device(f"{name}.{parameter}", device_to=tensor.device)
            elif hasattr(module, "weight_function"):
                for parameter in ("weight", "bias"):
                    key = f"{name}.{parameter}"
                    functions = [LowVramPatch(key, self.patches)] if key in self.patches else []
                    setattr(module, f"{parameter}_function", functions)
        self._attach_functions()
        self.model.model_loaded_weight_memory += self._attached_nbytes() - before
        self.model.current_weight_patches_uuid = self.patches_uuid

    def _attached_nbytes(self) -> int:
        """Bytes that branches of packed layers take, and unpacked weights more than packed ones."""
        layers = self._layers().values()
        return sum(self._unpacked().values()) + sum(
            layer.low_rank.nbytes for layer in layers if layer.low_rank is not None
        )
