"""Copies of the host's models, some of whose layers become others, beside the originals that go on being used."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import torch

from ...quant_core.errors import ConfigError
from ...quant_core.memory import readable
from .operations import PackedLinear
from .placement import make_room

# what patchers keep on the model that they share, of which a copy has none yet
_STATE_OF_LOADING = (
    "current_patcher", "current_weight_patches_uuid", "low_rank_uuid", "has_weight_wrappers", "lowvram_patch_counter",
    "model_lowvram", "model_loaded_weight_memory", "model_offload_buffer_memory", "dynamic_vbars", "dynamic_pins",
)  # fmt: skip
# and on its layers
_STATE_OF_LAYERS = (
    "comfy_patched_weights", "weight_lowvram_function", "bias_lowvram_function", "_v", "_v_signature", "_v_weight",
    "_v_bias", "_pins", "_pin_state", "_prefetch",
)  # fmt: skip
# what a patcher keeps of the model that it is for
_STATE_OF_PATCHER = (
    "model", "size", "parent", "pinned", "backup", "backup_buffers", "object_patches_backup", "hook_backup",
    "hook_patches_backup", "cached_hook_patches", "current_hooks", "is_injected", "cached_patcher_init",
    "clone_base_uuid",
)  # fmt: skip
# What is looked into for layers: containers, functions and objects in one another, so many deep.
_DEPTH = 12
# Not these. Who holds a patcher, which leads to all layers, loads that model as it is, and it stays as it is.
_OPAQUE = (type, types.ModuleType, torch.Tensor, comfy.model_patcher.ModelPatcher)
# Nor the attributes of objects from these, which lead far: loggers, threads, streams.
_LIBRARIES = (sys.stdlib_module_names - {"types"}) | {"torch"}


class ModelCopy:
    """A copy of a patcher's model as it is without patches, with tensors of its own.

    Subclasses say which layers become others, and what becomes of the tensors of the rest.

    Args:
        device: where the copy goes.
    """

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, device: torch.device | None = None):
        self.device = device
        self.load_device = patcher.load_device
        # a clone of the same model may have its patches on it at the moment
        self._originals = {key: backup[0] for key, backup in patcher.hook_backup.items()}
        self._originals |= {key: backup.weight for key, backup in patcher.backup.items()}
        self._objects = dict(patcher.object_patches_backup)
        self._made: dict[int, torch.nn.Module] = {}
        self.modules = dict(self._walk(patcher.model, "", set()))
        self.weights = {
            prefix + name: self._originals.get(prefix + name, parameter)
            for prefix, module in ((_prefix(path), module) for path, module in self.modules.items())
            for name, parameter in module._parameters.items()
            if parameter is not None
        }

    def layer(self, module: torch.nn.Module, path: str) -> torch.nn.Module | None:
        """What takes the place of ``module``, with its tensors in it. None: a copy of it."""

    def tensor(self, key: str) -> torch.Tensor:
        """What the parameter ``key`` becomes."""
        return self.weights[key].detach().to(self.device, copy=True)

    def settle(self, module: torch.nn.Module, path: str) -> None:
        """Change the copy of a module, which has all its tensors and children, in what depends on them."""

    def copied(self, module: torch.nn.Module, path: str = "") -> torch.nn.Module:
        """The copy of the module at ``path``; the same one for a module that is in several places."""
        if known := self._made.get(id(module)):
            return known
        if made := self.layer(module, path):
            self._made[id(module)] = made
            return made
        prefix = _prefix(path)
        made = self._made[id(module)] = self._shallow(module, path)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made._parameters[name] = torch.nn.Parameter(self.tensor(prefix + name), requires_grad=False)
        for name, buffer in module._buffers.items():
            made._buffers[name] = None if buffer is None else buffer.to(self.device, copy=True)
        for name, child in self._children(module, prefix):
            made._modules[name] = None if child is None else self.copied(child, prefix + name)
        comfy.model_patcher.wipe_lowvram_weight(made)
        for name in _STATE_OF_LAYERS:
            vars(made).pop(name, None)
        if not path:
            for name in _STATE_OF_LOADING:
                vars(made).pop(name, None)
        self.settle(made, path)
        return made

    def attributes(self, module: torch.nn.Module, path: str) -> dict[str, Any]:
        """What the module at ``path`` has of its own, without patches, and without methods of its class: those are left
        on it by the host when it takes a patch off."""
        found = {name: self._objects.get(_prefix(path) + name, value) for name, value in vars(module).items()}
        return {name: value for name, value in found.items() if not _is_own_method(module, name, value)}

    def _shallow(self, module: torch.nn.Module, path: str) -> torch.nn.Module:
        """Another module of the same class and attributes, with tables of tensors, modules and hooks of its own."""
        shallow = module.__class__.__new__(module.__class__)
        found = self.attributes(module, path)
        tables = {n: v.copy() for n, v in found.items() if n[0] == "_" and type(v) in (dict, OrderedDict, set)}
        vars(shallow).update(found | tables)
        if isinstance(shallow, PackedLinear):
            shallow.take_number()
        return shallow

    def _children(self, module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module | None]]:
        for name, child in module._modules.items():
            yield name, self._objects.get(prefix + name, child)

    def _walk(self, module: torch.nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, torch.nn.Module]]:
        """Each module once, by its first path."""
        if id(module) not in seen:
            seen.add(id(module))
            yield path, module
            for name, child in self._children(module, _prefix(path)):
                if child is not None:
                    yield from self._walk(child, _prefix(path) + name, seen)


def config_of_copy(model: torch.nn.Module) -> Any:
    """Give a copy a configuration of its own, and return that."""
    original = model.model_config
    # newer hosts' answer to any attribute, __setstate__ too, is None, which copy.copy would call
    config = model.model_config = original.__class__.__new__(original.__class__)
    vars(config).update(vars(original) | {"unet_config": dict(original.unet_config)})
    return config


def patcher_for(
    model: torch.nn.Module,
    like: comfy.model_patcher.ModelPatcher,
    kind: type,
    device: torch.device,
    patches: dict[str, list] | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """A patcher of class ``kind`` for ``model``, a copy of that of ``like`` which is on ``device``.

    It has the patches, options and wrappers of ``like``, or the ``patches`` given.
    """
    model.current_patcher, model.device = None, device
    fresh = kind(model, like.load_device, like.offload_device)
    result = like.clone()
    result.__class__ = kind
    if patches is not None:
        result.patches, result.patches_uuid = patches, uuid.uuid4()
    for name in _STATE_OF_PATCHER:
        if hasattr(fresh, name):
            setattr(result, name, getattr(fresh, name))
    if device != like.offload_device and not memory.is_device_cpu(device):
        # in place already: tell the host, so that it counts the model and can unload it
        result.patch_model(device)
        memory.load_models_gpu([result], force_full_load=True)
    return result


def room_for(patcher: Any, needed: int, largest: int, cannot: str, way_out: str) -> torch.device:
    """Ask the host for room for a copy, and say where it goes: a model to its device if it fits there beside what
    sampling needs, else, and text encoders always, to where the host keeps those that are not in use.

    Args:
        needed: bytes of the copy.
        largest: bytes of its largest weight at 16 bit.
        cannot, way_out: what an error begins and ends with.

    Raises:
        MemoryError: there is no room.
    """
    device, idle = patcher.load_device, patcher.offload_device
    destination = make_room(device, idle, 0 if patcher.is_clip else needed, largest)
    if destination != idle and not patcher.is_clip and not memory.is_device_cpu(device):
        return destination
    memory.free_memory(needed, idle)
    if memory.get_free_memory(idle) >= needed:
        return idle
    free = " and ".join(
        f"{readable(memory.get_free_memory(place))} of {'main memory' if place.type == 'cpu' else f'VRAM ({place})'}"
        for place in dict.fromkeys((device, idle))
    )
    raise MemoryError(f"{cannot} {readable(needed)}, and {free} are free. {way_out}")


def require_unheld(
    patcher: comfy.model_patcher.ModelPatcher,
    plan: ModelCopy,
    layers: Mapping[str, torch.nn.Module],
    input_name: str,
    node: str,
) -> None:
    """Check that nothing outside of the model's tree of modules uses ``layers``: it would go on using them.

    Args:
        plan: the copy that is to be made.
        layers: path -> layer that becomes another.
        node: display name of the node that makes the copy.

    Raises:
        ConfigError: the model was compiled, or another node's patch or injection holds or changes one of them.
    """
    ids = {id(layer) for layer in layers.values()}
    compiled = any(by_key.get("torch.compile") for by_key in patcher.wrappers.values())
    changed = any(
        layer._forward_hooks or layer._forward_pre_hooks or "forward" in plan.attributes(layer, path)
        for path, layer in layers.items()
    )
    outside = (patcher.object_patches, patcher.wrappers, patcher.injections, patcher.callbacks, patcher.model_options)
    attributes = [
        value
        for path, module in plan.modules.items()
        for name, value in plan.attributes(module, path).items()
        if name[0] != "_" and name not in (*_STATE_OF_LOADING, *_STATE_OF_LAYERS)
    ]
    if compiled or changed or _hold((*outside, *attributes), ids):
        raise ConfigError(
            f"{input_name} was compiled, or another node holds its layers, and would go on using those. A LoRA loader "
            f"in bypass mode does so too. Put {node} right behind the loader, and that node behind {node}."
        )


def _hold(values: Iterable[Any], layers: set[int]) -> bool:
    """Whether one of ``values`` is one of ``layers`` (ids), has it as a module, or leads to it."""
    seen: dict[int, Any] = {}  # by id, and kept, so that no other object gets that id
    for _ in range(_DEPTH):
        new = {id(value): value for value in values if id(value) not in seen and not isinstance(value, _OPAQUE)}
        modules = [value for value in new.values() if isinstance(value, torch.nn.Module)]
        if any(id(module) in layers for value in modules for module in value.modules()):
            return True
        seen |= new
        values = [one for value in new.values() for one in _within(value)]
    return False


def _within(value: Any) -> Iterator[Any]:
    """What a container contains, a function encloses, or an object has as attributes.

    Containers are copied before they are gone through: another thread of the host's may change them meanwhile.
    """
    if isinstance(value, torch.nn.Module):
        return
    if isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        yield from (*_enclosed(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        yield from list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from list(value)
    if str(type(value).__module__).partition(".")[0] not in _LIBRARIES:
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[Any]:
    """Those of the object itself, without asking its class, which may make some up."""
    with contextlib.suppress(AttributeError):  # it has only slots
        yield from list(object.__getattribute__(value, "__dict__").values())
    for base in type(value).__mro__:
        for member in vars(base).values():
            if isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not assigned
                    yield member.__get__(value)


def _enclosed(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            # not assigned yet
            continue


def _is_own_method(module: torch.nn.Module, name: str, value: Any) -> bool:
    own = isinstance(value, types.MethodType) and value.__self__ is module
    return own and value.__func__ is getattr(type(module), name, None)


def _prefix(path: str) -> str:
    return f"{path}." if path else ""
