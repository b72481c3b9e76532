"""Packed copies of models that any loader made."""

from __future__ import annotations

import logging
from dataclasses import replace

import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import torch

from ...quant_core.config import FLOAT8, QuantConfig
from ...quant_core.errors import CheckpointError, ConfigError
from ...quant_core.export import Provenance
from ...quant_core.flux.config import FluxConfig, read_flux_config
from ...quant_core.kernels.fp8 import require_float8
from ...quant_core.kernels.int8_ahead import compile_ahead
from ...quant_core.layouts import quantize
from ...quant_core.layouts.int8 import require_int8
from ...quant_core.memory import packed_nbytes
from ...quant_core.skip import is_skipped, unmatched
from ...quant_core.stored.plain import SIXTEEN_BIT
from .agreement import require_agreement
from .between import use_ours
from .compute_dtype import transformer_dtype
from .conditioning import keep_conditioning
from .copying import ModelCopy, config_of_copy, patcher_for, require_unheld, room_for
from .diffusers_names import diffusers_names
from .flux_model import workspace
from .merging import merged, split_merges
from .operations import multiply_blocks_in_float8, operations, packed_linears
from .patcher import PackedModelPatcher
from .progress import progress_bar
from .saving import remember
from .stored_weights import VALUES, dtype_of_values, is_linear, is_readable, values

logger = logging.getLogger(__name__)

ROOT = "diffusion_model."
# where the host keeps that a model is fp8 with scales, older names first
_QUANTIZED_BY_HOST = ("scaled_fp8", "layer_quant_config", "quant_config")


def quantized_model(
    patcher: comfy.model_patcher.ModelPatcher, config: QuantConfig | None = None, input_name: str = "model"
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL with packed weights, with the LoRAs, options and wrappers of ``patcher``, which stays as it is.

    Every linear layer of the transformer or U-Net is packed, one after the other on the model's device, but for those
    that ``config`` skips and those that would not become smaller. What is stored in fp8 stands for its values in
    bfloat16. What merging nodes blend into a weight is in it before it is packed, with the patches that lie below.

    Args:
        config: how to quantize; None: NF4, or as the model is packed already.
        input_name: what an error calls the model.

    Returns:
        ``patcher`` itself where it is packed already, or ``config`` has precision ``none``.

    Raises:
        ConfigError: the model is packed otherwise than ``config`` says, was quantized by another project, has no linear
            layer, or another node holds its layers; or ``config`` has a budget, or a precision that the device cannot
            run.
        MemoryError: the packed weights fit neither beside what sampling needs on the device, nor in the main memory.
    """
    packed = packed_linears(patcher.model)
    if packed:
        if config is not None:
            require_agreement(patcher, config, _names(patcher.model, packed), input_name)
        return patcher
    config = config or QuantConfig()
    if config.precision == "none":
        return patcher
    if not isinstance(patcher.model, comfy.model_base.BaseModel):
        raise ConfigError(f"{input_name} holds no transformer or U-Net of ComfyUI. Connect one from a model loader.")
    if config.budget_gib is not None:
        raise ConfigError(
            f"auto:{config.budget_gib:g} in skip_modules chooses precisions from a model's file, and {input_name} is "
            "loaded already. Remove auto, or use Load Quantized Transformer."
        )
    if config.precision == "int8":
        require_int8(patcher.load_device)
    if config.compute_dtype == FLOAT8:
        require_float8(patcher.load_device)
    if patcher.hook_patches:
        raise ConfigError(
            f"{input_name} has hook LoRAs, which change weights in place. Use LoraLoader for the whole picture instead."
        )
    with patcher.use_ejected():
        plan = _Quantizing(patcher, config)
        plan.require_quantizable(input_name)
        require_unheld(patcher, plan, plan.layers, input_name, "Quantize Model")
        device = room_for(
            patcher, sum(plan.sizes()), plan.largest(), f"{input_name} cannot be quantized: packed it takes",
            "Close other programs, or quantize to fewer bits.",
        )  # fmt: skip
        # looked at anew: making room may have moved the weights
        quantizing = _Quantizing(patcher, config, device)
        model = quantizing.copied(patcher.model)
    _set_up(model, patcher.load_device, config, bool(quantizing.merges))
    packed = patcher_for(model, patcher, PackedModelPatcher, device, quantizing.patches)
    keep_conditioning(packed)
    return packed


class _Quantizing(ModelCopy):
    """A copy with packed weights, and with our Linear in the place of the host's.

    Attributes:
        layers: path -> linear layer of the transformer.
        packed: paths of those that are packed.
        merges: key -> patches that are in the values before they are packed; ``patches``: those that stay.
    """

    def __init__(
        self, patcher: comfy.model_patcher.ModelPatcher, config: QuantConfig, device: torch.device | None = None
    ):
        super().__init__(patcher, device)
        self.layers = {path: m for path, m in self.modules.items() if path.startswith(ROOT) and is_linear(m)}
        self._names = _names(patcher.model, self.layers)
        self.packed = {
            path
            for path in self.layers
            if not is_skipped(self._names[path], config.skip_modules)
            and packed_nbytes(self._weight(path).shape, config) < 2 * self._weight(path).numel()
        }
        split = {key: split_merges(patches) for key, patches in patcher.patches.items()}
        self.merges = {key: merges for key, (merges, _) in split.items() if merges}
        self.patches = {key: rest for key, (_, rest) in split.items() if rest}
        self._config = config
        self._linear = operations(config.compute_dtype).Linear
        self._done, self._progress = 0, progress_bar()

    def require_quantizable(self, input_name: str) -> None:
        """Check that there is something to pack.

        Raises:
            ConfigError: there is not, or weights are packed by another project.
        """
        for key, tensor in self.weights.items():
            is_weight = key.removesuffix(".weight") in self.layers
            if not is_readable(tensor) or (is_weight and not tensor.is_floating_point()):
                kind = str(tensor.dtype) if type(tensor) is torch.nn.Parameter else type(tensor).__name__
                raise ConfigError(
                    f"{input_name} is quantized already, by another project: {key.removeprefix(ROOT)} is a {kind}, "
                    "which cannot be read. Load the model's 16-bit or fp8 file with a loader of ComfyUI instead."
                )
        for entry in unmatched([name for names in self._names.values() for name in names], self._config.skip_modules):
            logger.warning("skip_modules: %r matches no linear module of %s.", entry, input_name)
        if not self.packed:
            skipped = bool(self.layers)
            raise ConfigError(
                f"{input_name} has no linear layer to quantize"
                + (" that skip_modules does not name. Name fewer." if skipped else ". Use it as it is.")
            )

    def sizes(self) -> list[int]:
        """Bytes of each parameter of the copy."""
        sizes = []
        for key, tensor in self.weights.items():
            if key.removesuffix(".weight") in self.packed:
                sizes.append(packed_nbytes(tensor.shape, self._config))
            else:
                sizes.append(tensor.numel() * dtype_of_values(tensor).itemsize)
        return sizes

    def largest(self) -> int:
        """Bytes that the largest weight takes before it is packed; blending takes two in float32."""
        weights = map(self._weight, self.packed)
        return max(weight.numel() * (8 if self.merges else dtype_of_values(weight).itemsize) for weight in weights)

    def layer(self, module: torch.nn.Module, path: str) -> torch.nn.Module | None:
        if path not in self.layers:
            return None
        weight = self._weight(path)
        if path in self.packed:
            tensors = {"weight": self._packed(module, path)}
        elif dtype_of_values(weight) == weight.dtype and not hasattr(module, "convert_weight"):
            return None
        else:
            tensors = {"weight": self._values(module, path, self.device)}
        if module.bias is not None:
            tensors["bias"] = self.tensor(f"{path}.bias")
        linear = self._linear(module.in_features, module.out_features, module.bias is not None)
        linear.load_state_dict(tensors)
        return linear.train(module.training)

    def tensor(self, key: str) -> torch.Tensor:
        tensor = self.weights[key]
        copied = tensor.detach().to(self.device, dtype_of_values(tensor), copy=True)
        return merged(self.merges.get(key, []), copied, key)

    def settle(self, module: torch.nn.Module, path: str) -> None:
        if hasattr(module, "comfy_cast_weights"):
            # weights keep their dtype, and activations may get another one
            module.comfy_cast_weights = True

    def _weight(self, path: str) -> torch.Tensor:
        return self.weights[f"{path}.weight"]

    def _tell(self) -> None:
        self._progress(self._done, len(self.packed))

    def _values(self, module: torch.nn.Module, path: str, device: torch.device) -> torch.Tensor:
        key = f"{path}.weight"
        return merged(self.merges.get(key, []), values(module, self.weights[key], device), key)

    def _packed(self, module: torch.nn.Module, path: str) -> torch.Tensor:
        packed = quantize(self._values(module, path, self.load_device), self._config, self._tell)
        self._done += 1
        self._tell()
        if self.load_device.type == "cuda":
            # bitsandbytes quantizes on the default stream, which a move on another would not wait for
            torch.cuda.default_stream(self.load_device).synchronize()
        return packed.to(self.device)


def _names(model: comfy.model_base.BaseModel, paths) -> dict[str, tuple[str, ...]]:
    """Path -> the names that a skip list may call the layer by, the host's own first."""
    diffusers = diffusers_names(model)
    natives = {path: path.removeprefix(ROOT) for path in paths}
    return {path: (native, *diffusers.get(native, ())) for path, native in natives.items()}


def _set_up(model: comfy.model_base.BaseModel, device: torch.device, config: QuantConfig, is_merged: bool) -> None:
    """What the loader of packed models configures."""
    host = config_of_copy(model)
    host.custom_operations = operations(config.compute_dtype)
    multiply_blocks_in_float8(model.diffusion_model)
    use_ours(model.diffusion_model)
    for name in _QUANTIZED_BY_HOST:
        if hasattr(type(host), name):
            setattr(host, name, None)
    stored = model.get_dtype() if model.get_dtype() in SIXTEEN_BIT else VALUES
    dtype = transformer_dtype(config.compute_dtype, stored, device)
    if config.compute_dtype is None and dtype not in host.supported_inference_dtypes:
        dtype = stored
    model.manual_cast_dtype = memory.unet_manual_cast(dtype, device, host.supported_inference_dtypes)
    host.set_inference_dtype(dtype, model.manual_cast_dtype)
    model.diffusion_model.dtype = dtype
    if config.precision == "int8":
        compile_ahead(device, dtype, config.int8_threshold)
    flux = _flux_config(model)
    if flux is not None:
        model.memory_usage_factor = workspace(config.precision, device)
        remember(model.diffusion_model, _provenance(model.diffusion_model, config, flux, is_merged))


def _flux_config(model: comfy.model_base.BaseModel) -> FluxConfig | None:
    """The sizes of a FLUX.1; None for other models, its relatives included."""
    if not isinstance(model, comfy.model_base.Flux):
        return None
    # newer hosts call the scale of a norm its weight
    tensors = {n.replace("_norm.weight", "_norm.scale"): p for n, p in model.diffusion_model.named_parameters()}
    try:
        flux = read_flux_config("model", tensors)
    except CheckpointError:
        return None
    return flux if flux.tensor_shapes() == {name: tuple(tensor.shape) for name, tensor in tensors.items()} else None


def _provenance(transformer: torch.nn.Module, config: QuantConfig, flux: FluxConfig, is_merged: bool) -> Provenance:
    """What saving has to know. A stock loader's MODEL does not tell its file, and a merged one came of several."""
    known = next((value for value in vars(transformer).values() if isinstance(value, Provenance)), None)
    if known is None or is_merged:
        return Provenance(source="", source_header_sha256="", config=config, model=flux, dtypes={})
    packed = {f"{name}.weight" for name in packed_linears(transformer)}
    dtypes = {name: dtype for name, dtype in known.dtypes.items() if name not in packed}
    return replace(known, config=config, dtypes=dtypes)
