"""How weights are quantized. The wire format is the ``quantization_config`` of diffusers and transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .errors import ConfigError

if TYPE_CHECKING:
    import diffusers
    import transformers

FOUR_BIT = ("nf4", "fp4")
PRECISIONS = (*FOUR_BIT, "int8", "none")
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
AUTO = "auto"
FLOAT8 = torch.float8_e4m3fn
WEIGHT_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COMPUTE_DTYPES = WEIGHT_DTYPES | {"float8": FLOAT8}

_AUTO_REMEDY = f"Write {AUTO}:<GiB> once, such as {AUTO}:7.5, for a transformer of at most 7.5 GiB."


@dataclass(frozen=True)
class QuantConfig:
    """One quantization recipe, for a transformer or a text encoder.

    Attributes:
        precision: ``nf4`` or ``fp4`` (4-bit, block-wise), ``int8`` (LLM.int8(), one scale per output row), or
            ``none`` (weights as stored).
        compute_dtype: dtype of the products; ``None`` takes bfloat16 where the device has it. ``FLOAT8`` concerns
            4-bit weights within a transformer's blocks, see :mod:`.kernels.fp8`; all others multiply in bfloat16.
        double_quant: 4-bit only: quantize the absmax values again (nested quantization).
        blocksize: 4-bit only: weights that share one absmax.
        int8_threshold: int8 only: input columns with a magnitude at or above it are multiplied in 16 bit;
            0 multiplies everything in 8 bit.
        skip_modules: modules left at 16 bit, see :func:`quant_core.skip.is_skipped`.
        budget_gib: GiB that the whole model may take; each layer then gets a precision of its own, see
            :mod:`quant_core.mixed`. None packs all layers alike.

    Raises:
        ConfigError: a value is out of range.
    """

    precision: str = "nf4"
    compute_dtype: torch.dtype | None = None
    double_quant: bool = False
    blocksize: int = 64
    int8_threshold: float = 6.0
    skip_modules: tuple[str, ...] = ()
    budget_gib: float | None = None

    def __post_init__(self):
        _require(self.precision in PRECISIONS, "precision", self.precision, PRECISIONS)
        _require(self.blocksize in BLOCKSIZES, "blocksize", self.blocksize, BLOCKSIZES)
        allowed = (None, *COMPUTE_DTYPES.values())
        _require(self.compute_dtype in allowed, "compute_dtype", self.compute_dtype, ("auto", *COMPUTE_DTYPES))
        # written so that NaN fails too
        if not 0 <= self.int8_threshold < float("inf"):
            raise ConfigError(
                f"int8_threshold is {self.int8_threshold}, but must be a finite number of at least 0. "
                "Use 6.0, or 0 to multiply every column in 8 bit."
            )
        if self.budget_gib is not None:
            if not 0 < self.budget_gib < math.inf:
                raise ConfigError(f"The budget is {self.budget_gib} GiB. {_AUTO_REMEDY}")
            if self.precision == "none":
                raise ConfigError(
                    f"precision none packs nothing, so there is no choice to make for {AUTO}:{self.budget_gib:g}. "
                    f"Choose nf4, fp4 or int8, the lowest precision that a layer may get, or remove {AUTO}."
                )

    @property
    def is_four_bit(self) -> bool:
        return self.precision in FOUR_BIT

    def describe(self) -> str:
        """A short label, such as ``nf4 double quant`` or ``int8 threshold 6``."""
        label = {"none": "16-bit"}.get(self.precision, self.precision)
        if self.is_four_bit:
            label += f" blocksize {self.blocksize}" if self.blocksize != 64 else ""
            label += " double quant" if self.double_quant else ""
        if self.precision == "int8":
            label += f" threshold {self.int8_threshold:g}"
        if self.budget_gib is not None:
            label += f" and better within {self.budget_gib:g} GiB"
        return label

    def to_diffusers(self) -> diffusers.BitsAndBytesConfig:
        """The same recipe as diffusers' class. Blocksize has no field there.

        Raises:
            ConfigError: ``none``, or a blocksize other than 64, has no counterpart.
        """
        from diffusers import BitsAndBytesConfig

        return BitsAndBytesConfig(**self._wire_fields())

    def to_transformers(self) -> transformers.BitsAndBytesConfig:
        """As :meth:`to_diffusers`, for transformers' class."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**self._wire_fields())

    def _wire_fields(self) -> dict[str, Any]:
        if self.precision == "none":
            raise ConfigError("precision none has no BitsAndBytesConfig: an unquantized model is saved without one.")
        if self.is_four_bit and self.blocksize != 64:
            raise ConfigError(
                f"BitsAndBytesConfig has no blocksize field and its loaders use 64, but this config has "
                f"{self.blocksize}. Use blocksize 64 for diffusers and transformers."
            )
        fields: dict[str, Any] = {"llm_int8_skip_modules": list(self.skip_modules) or None}
        if self.is_four_bit:
            fields |= {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": self.precision,
                "bnb_4bit_use_double_quant": self.double_quant,
                # there is no name for float8
                "bnb_4bit_compute_dtype": inner_dtype(self.compute_dtype) or torch.bfloat16,
            }
        else:
            fields |= {"load_in_8bit": True, "llm_int8_threshold": float(self.int8_threshold)}
        return fields

    @classmethod
    def from_hugging_face(cls, config: Any) -> QuantConfig:
        """Read diffusers' or transformers' ``BitsAndBytesConfig``, or the ``quantization_config`` of a config.json.

        Raises:
            ConfigError: the method is not bitsandbytes, or asks for 16-bit main weights, which are for training.
        """
        fields: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        method = getattr(
            fields.get("quant_method", "bitsandbytes"), "value", fields.get("quant_method", "bitsandbytes")
        )
        if method != "bitsandbytes":
            raise ConfigError(
                f"quant_method is {method!r}, but only bitsandbytes can be read. Load the model's 16-bit files instead."
            )
        if fields.get("llm_int8_has_fp16_weight"):
            raise ConfigError("llm_int8_has_fp16_weight keeps 16-bit weights for training. Set it to false.")
        skip_modules = tuple(fields.get("llm_int8_skip_modules") or ())
        if fields.get("load_in_8bit"):
            threshold = float(fields.get("llm_int8_threshold", 6.0))
            return cls("int8", int8_threshold=threshold, skip_modules=skip_modules)
        if fields.get("load_in_4bit"):
            return cls(
                str(fields.get("bnb_4bit_quant_type", "fp4")),
                compute_dtype=_dtype(fields.get("bnb_4bit_compute_dtype")),
                double_quant=bool(fields.get("bnb_4bit_use_double_quant", False)),
                skip_modules=skip_modules,
            )
        raise ConfigError("Neither load_in_8bit nor load_in_4bit is set. Set one of them.")


def parse_skip_modules(text: str) -> tuple[str, ...]:
    """Module names from a text with one name per line, or separated by commas, Chinese ones too.

    Raises:
        ConfigError: a name is a number, which would match blocks of every list, or a size.

    >>> parse_skip_modules("img_in, txt_in\\nsingle_blocks.*")
    ('img_in', 'txt_in', 'single_blocks.*')
    """
    names = tuple(name for name in (part.strip() for part in re.split(r"[,，、\n]", text)) if name)
    for name in names:
        if re.fullmatch(r"[\d.]+ *(GiB|GB|G)?", name, re.IGNORECASE):
            raise ConfigError(
                f"skip_modules has the number {name}, which names no module. For a block write its list too, such as "
                f"double_blocks.{name}; a budget has a decimal point and no comma: {AUTO}:7.5."
            )
    return names


def split_budget(entries: Iterable[str]) -> tuple[tuple[str, ...], float | None]:
    """(the other entries of a skip list, the GiB of its ``auto:<GiB>``; None where there is no such entry).

    Raises:
        ConfigError: ``auto`` has no usable number, or is there twice.

    >>> split_budget(["img_in", "auto:7.5"])
    (('img_in',), 7.5)
    """
    names, budgets = [], []
    for entry in entries:
        # also auto=7.5 and the like, which would be the names of modules that no model has
        if not re.match(rf"\s*{AUTO}(?![a-z_])", entry, re.IGNORECASE):
            names.append(entry)
            continue
        name, _, number = (part.strip() for part in entry.partition(":"))
        try:
            if name.lower() != AUTO or "_" in number:
                raise ValueError(entry)
            budgets.append(float(number))
        except ValueError as error:
            raise ConfigError(f"skip_modules has {entry!r}. {_AUTO_REMEDY}") from error
    if len(budgets) > 1:
        raise ConfigError(f"skip_modules has {AUTO} more than once. {_AUTO_REMEDY}")
    return tuple(names), budgets[0] if budgets else None


def named_compute_dtype(name: str) -> torch.dtype | None:
    """The dtype called ``name``; None for ``auto``.

    Raises:
        ConfigError: there is none.
    """
    _require(name == "auto" or name in COMPUTE_DTYPES, "compute_dtype", name, ("auto", *COMPUTE_DTYPES))
    return COMPUTE_DTYPES.get(name)


def compute_dtype_name(dtype: torch.dtype | None) -> str | None:
    """What :func:`named_compute_dtype` reads; None for None."""
    return next((name for name, known in COMPUTE_DTYPES.items() if known == dtype), None)


def inner_dtype(compute_dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype of inputs, outputs and LoRA around products in ``compute_dtype``: bfloat16 where that is float8."""
    return torch.bfloat16 if compute_dtype == FLOAT8 else compute_dtype


def _dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    """bitsandbytes' default, float32, when nothing is said."""
    if isinstance(value, torch.dtype):
        return value
    name = (value or "float32").removeprefix("torch.")
    _require(name in COMPUTE_DTYPES, "bnb_4bit_compute_dtype", value, COMPUTE_DTYPES)
    return COMPUTE_DTYPES[name]


def _require(ok: bool, name: str, value: object, allowed: Any):
    if not ok:
        raise ConfigError(f"{name} is {value!r}. Use one of {', '.join(map(str, allowed))}.")
