"""The layer classes that the host builds its models from, with a Linear that holds packed weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import comfy.ops
import torch

from ...quant_core.config import FLOAT8, inner_dtype
from ...quant_core.kernels.fp8 import is_in_block
from ...quant_core.layouts import Parts, dequantize, is_packed, plain_tensors
from ...quant_core.linear import linear
from ...quant_core.lora import LowRank
from .layer_operators import number_of
from .offload import borrowed, with_plain_tensors


class PackedLinear(torch.nn.Module, comfy.ops.CastWeightBiasOp):
    """A Linear that takes its weight from the state dict as it comes, packed or plain.

    Nothing is allocated before loading, so the 16-bit weight never exists. A packed weight is multiplied in
    ``compute_dtype`` (in the dtype of the input, if None) and the result cast back; a plain one in the dtype of the
    input, as the host does. ``low_rank`` is the LoRA of a packed weight. ``weight_function`` and ``bias_function`` are
    the host's hooks for patches of other kinds: they get the dequantized weight at each use.
    """

    compute_dtype: torch.dtype | None = None
    float8: bool = False
    low_rank: LowRank | None = None
    parts: Parts | None = None  # of a packed weight, while a compiled graph runs
    pinned_block: torch.Tensor | None = None  # where the data of an offloaded weight is, if it is pinned

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.take_number()

    def __setstate__(self, state):
        super().__setstate__(state)
        self.take_number()

    def __deepcopy__(self, memo):
        # hosts copy what a patcher's options hold; of packed weights torch copies a storage, which they have not
        weight = self.weight
        if is_packed(weight) and id(weight) not in memo:
            memo[id(weight)] = _frozen(with_plain_tensors(weight, [part.clone() for part in plain_tensors(weight)]))
        made = memo[id(self)] = self.__class__.__new__(self.__class__)
        # the copy is neither pinned nor in a graph that runs
        state = {name: value for name, value in vars(self).items() if name not in ("pinned_block", "parts")}
        made.__setstate__(copy.deepcopy(state, memo))
        return made

    def take_number(self):
        """Be known to the operators of compiled graphs as another layer than the one that this is a copy of."""
        self._number = number_of(self)

    @property
    def inner_dtype(self) -> torch.dtype | None:
        """The dtype that inputs are cast to, and the one of ``low_rank``."""
        return inner_dtype(self.compute_dtype)

    def extra_repr(self) -> str:
        kind = self.weight.layout_cls.NAME if is_packed(self.weight) else "plain"
        return f"in_features={self.in_features}, out_features={self.out_features}, {kind}"

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        weight = state_dict.get(prefix + "weight")
        if weight is None:
            missing.append(prefix + "weight")
            return
        if tuple(weight.shape) != (self.out_features, self.in_features):
            errors.append(
                f"{prefix}weight has shape {tuple(weight.shape)}, expected {(self.out_features, self.in_features)}"
            )
            return
        self.weight = _frozen(weight)
        bias = state_dict.get(prefix + "bias")
        if bias is not None:
            self.bias = _frozen(bias)

    def hold(self, weight: torch.Tensor, pinned_block: torch.Tensor | None = None):
        """Take another tensor of the same values as the weight."""
        self.weight = _frozen(weight)
        self.pinned_block = pinned_block

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # the host sums these tensors to learn how much memory the layer takes: exactly what is held
        if self.weight is not None:
            data, *statistics = plain_tensors(self.weight)
            destination[prefix + "weight"] = data
            for i, tensor in enumerate(statistics):
                destination[f"{prefix}weight.statistics.{i}"] = tensor
        if self.low_rank is not None:
            destination |= {f"{prefix}low_rank.down": self.low_rank.down, f"{prefix}low_rank.up": self.low_rank.up}
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _apply(self, fn, recurse=True):
        # Module._apply sets param.data, which leaves the statistics of a packed weight behind
        for name, parameter in self._parameters.items():
            if parameter is not None:
                moved = fn(parameter)
                if moved is not parameter:
                    self._parameters[name] = _frozen(moved)
        if self.low_rank is not None:
            self.low_rank = LowRank(fn(self.low_rank.down), fn(self.low_rank.up))
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        comfy.ops.run_every_op()
        weight = self.weight if self.parts is None else self.parts
        if weight.device == x.device and (self.bias is None or self.bias.device == x.device):
            return self._product(x, weight, self.bias)
        if torch.compiler.is_compiling():
            return torch.ops.quantflux.offloaded_linear(x, self._number, self.out_features)
        with borrowed(self.weight, self.bias, x.device) as (weight, bias):
            return self._product(x, weight, bias)

    def _product(self, x: torch.Tensor, weight: torch.Tensor | Parts, bias: torch.Tensor | None) -> torch.Tensor:
        dtype = x.dtype if self.inner_dtype is None or not is_packed(weight) else self.inner_dtype
        if self.weight_function:
            # patches change in place what they are given
            own = dequantize(weight, dtype) if is_packed(weight) else weight.to(dtype, copy=True)
            weight = self._patched(own, "weight_function")
        if self.bias_function and bias is not None:
            bias = self._patched(bias.to(dtype, copy=True), "bias_function")
        low_rank = self.low_rank
        if low_rank is not None and (low_rank.down.dtype != dtype or low_rank.down.device != x.device):
            low_rank = low_rank.to(x.device, dtype)
        return linear(x.to(dtype), weight, bias, low_rank, self.float8).to(x.dtype)

    @contextlib.contextmanager
    def lent(self, device: torch.device) -> Iterator[None]:
        """An offloaded layer with all that it holds on ``device``, for the time of one use."""
        kept, low_rank = dict(self._parameters), self.low_rank
        with borrowed(self.weight, self.bias, device) as (weight, bias):
            self._parameters.update(weight=_frozen(weight), bias=None if bias is None else _frozen(bias))
            if low_rank is not None:
                self.low_rank = low_rank.to(device)
            try:
                yield
            finally:
                self._parameters.update(kept)
                self.low_rank = low_rank

    def _patched(self, tensor: torch.Tensor, hooks: str) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return torch.ops.quantflux.patched(tensor, self._number, hooks)
        for function in getattr(self, hooks):
            tensor = function(tensor)
        return tensor


@contextlib.contextmanager
def in_parts(layers: Sequence[PackedLinear]) -> Iterator[None]:
    """Packed weights of ``layers`` as what a compiled graph takes cheaply, for the time of one call of it."""
    # not longer, nor through Module's own attributes: the parts would outlive the weight, and the latter takes long
    try:
        for layer in layers:
            if is_packed(weight := layer._parameters["weight"]):
                vars(layer)["parts"] = Parts.of(weight)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("parts", None)


def operations(compute_dtype: torch.dtype | None) -> type:
    """The host's layer classes with :class:`PackedLinear`, computing in ``compute_dtype``."""

    class Linear(PackedLinear):
        pass

    Linear.compute_dtype = compute_dtype
    return type("PackedOperations", (comfy.ops.manual_cast,), {"Linear": Linear})


def multiply_blocks_in_float8(model: torch.nn.Module) -> None:
    """Let the layers of the blocks multiply in float8, where that is their ``compute_dtype``."""
    for name, layer in packed_linears(model).items():
        layer.float8 = layer.compute_dtype == FLOAT8 and is_in_block(name)


def packed_linears(model: torch.nn.Module) -> dict[str, PackedLinear]:
    """The layers of ``model`` that hold a packed weight, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear) and is_packed(module.weight)
    }


def _frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    if is_packed(tensor):
        # torch.nn.Parameter marks a tensor subclass so, but detaches it first, and a detached QuantizedTensor has
        # a second copy of the statistics: 0.7 GiB of a FLUX.1-dev
        tensor._is_param = True
        return tensor
    return torch.nn.Parameter(tensor, requires_grad=False)
