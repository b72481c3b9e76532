"""Small packed files as people have them, taken apart to header and data so that every byte can be changed."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import bitsandbytes.functional as bnb
import format_files
import pytest
import small_models
import torch
from bitsandbytes.functional import QuantState
from dequantized import dequantized_4bit
from native_names import native_state_dict
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.identify import FLUX, FLUX_DIFFUSERS, T5
from quantflux.quant_core.layouts import dequantize
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors.torch import load_file, save_file

STATE = ".quant_state.bitsandbytes__"
# the smallest that has every kind of layer
TINY_FLUX = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": (4, 14, 14),
}
TINY_T5 = {"vocab_size": 64, "d_model": 64, "d_kv": 32, "d_ff": 64, "num_heads": 2, "num_layers": 1}


@dataclass
class RawFile:
    """A safetensors file as its JSON header and its data."""

    header: dict
    data: bytes
    folder_files: dict[str, bytes] = field(default_factory=dict)  # what lies beside it, for a model folder
    name: str = "changed.safetensors"

    @classmethod
    def read(cls, path: Path, **more) -> RawFile:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        return cls(json.loads(content[8 : 8 + length]), content[8 + length :], **more)

    @property
    def tensors(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    def copy(self) -> RawFile:
        return RawFile(copy.deepcopy(self.header), self.data, self.folder_files, self.name)

    def content(self, name: str) -> bytes:
        start, stop = self.header[name]["data_offsets"]
        return self.data[start:stop]

    def with_entry(self, name: str, **fields) -> RawFile:
        """The same data under another header entry."""
        changed = self.copy()
        changed.header[name] |= fields
        return changed

    def with_tensors(self, changes: dict[str, tuple[str, list[int], bytes] | None]) -> RawFile:
        """Tensors replaced, added, or (None) removed; the file itself stays sound."""
        entries = {n: (self.header[n]["dtype"], self.header[n]["shape"], self.content(n)) for n in self.tensors}
        entries |= changes
        changed = RawFile({}, b"", self.folder_files, self.name)
        pieces, end = [], 0
        for name, entry in entries.items():
            if entry is None:
                continue
            dtype, shape, content = entry
            changed.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(content)]}
            pieces.append(content)
            end += len(content)
        changed.data = b"".join(pieces)
        return changed

    def with_content(self, name: str, content: bytes) -> RawFile:
        """Another content of the same dtype; a one-dimensional tensor may change its length."""
        entry = self.header[name]
        shape = entry["shape"] if len(content) == len(self.content(name)) else [len(content)]
        return self.with_tensors({name: (entry["dtype"], shape, content)})

    def bytes(self, header: bytes | None = None) -> bytes:
        text = json.dumps(self.header).encode() if header is None else header
        return struct.pack("<Q", len(text)) + text + self.data

    def write(self, folder: Path, content: bytes | None = None) -> Path:
        """Write the file, or the folder it belongs to; gives what to open."""
        for name, beside in self.folder_files.items():
            (folder / name).write_bytes(beside)
        path = folder / self.name
        path.write_bytes(self.bytes() if content is None else content)
        return folder if self.folder_files else path


class Form:
    """One form that models come in: its unchanged file, and how it is loaded."""

    def __init__(self, name: str, file: RawFile, modules: Iterable[str]):
        self.name, self.file = name, file
        # the others are stored as one of these is; each would be refused or read by the same lines
        self.tensors = [name for name in file.tensors if name.startswith(tuple(modules))]

    def load(self, path: Path) -> dict[str, torch.Tensor]:
        kind, source = (T5, t5_source) if self.name.startswith("t5") else (FLUX, flux_source)
        # a packed model keeps its own quantization; fp8 would be quantized
        config = QuantConfig("none") if "fp8" in self.name else None
        return load(source(open_checkpoint(path, kind.component), config))

    def meaning(self, path: Path) -> dict[str, torch.Tensor]:
        """What the file's weights stand for, by bitsandbytes' own reading, under the model's names."""
        tensors = load_file(path / self.file.name if path.is_dir() else path)
        values = {}
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            state = next((other for other in tensors if other.startswith(name + STATE)), None)
            if state is not None:
                statistics = {n: t for n, t in tensors.items() if n.startswith(f"{name}.")}
                quant_state = QuantState.from_dict(statistics, device=torch.device("cpu"))
                values[name] = dequantized_4bit(tensor.reshape(-1).view(torch.uint8).reshape(-1, 1), quant_state)
            elif f"{module}.SCB" in tensors:
                values[name] = bnb.int8_vectorwise_dequant(tensor, tensors[f"{module}.SCB"]).to(torch.bfloat16)
            elif tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
                scale = tensors.get(f"{module}.scale_weight", torch.ones(()))
                values[name] = (tensor.float() * scale.reshape(-1, 1).float()).reshape(tensor.shape).bfloat16()
            else:
                values[name] = tensor
        if FLUX_DIFFUSERS.marker in values:
            values = native_state_dict({n: t for n, t in values.items() if n in self._parameters(values)})
        return values

    def _parameters(self, values):
        return [name for name in values if not any(s in name for s in (STATE, ".absmax", "quant_map", ".SCB"))]

    def outcome(self, path: Path, *blamed: str) -> str:
        """``refused`` or ``loaded``; anything else than the promise is an AssertionError that says what.

        The promise: an error that names the file, what is to ``blame`` and a way out; or the values that the file's
        bytes mean.
        """
        try:
            loaded = self.load(path)
        except CheckpointError as error:
            message = str(error)
            names = {path.name, self.file.name}
            assert any(message.startswith(f"{name}: ") for name in names), f"names no file: {message}"
            assert not blamed or any(name in message for name in blamed), f"names none of {blamed}: {message}"
            assert error.remedy.strip().endswith("."), f"no way out: {message}"
            assert len(message) < 2000, f"{len(message)} characters of message"
            return "refused"
        meant = self.meaning(path)
        for name, tensor in loaded.items():
            values = dequantize(tensor, meant[name].dtype)
            same = torch.equal(values.nan_to_num(), meant[name].nan_to_num())
            assert same, f"another value of {name}"
        return "loaded"


@pytest.fixture(scope="session")
def forms(tmp_path_factory) -> dict[str, Form]:
    """Every packed form, by name, written by bitsandbytes and diffusers."""
    root = tmp_path_factory.mktemp("forms")

    def stored(name: str, modules, tensors) -> Form:
        folder = root / name.replace(" ", "_")
        folder.mkdir()
        path = folder / "stored.safetensors"
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
        return Form(name, RawFile.read(path), modules)

    flux = small_models.random_flux(**TINY_FLUX)
    native = {n: t.contiguous() for n, t in native_state_dict(flux.state_dict()).items()}
    t5 = {n: t for n, t in small_models.random_t5(**TINY_T5).state_dict().items() if "embed_tokens" not in n}
    few = {"img_in", "double_blocks.0.img_attn.qkv"}
    in_t5 = {"encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wo"}
    scaled = ("scale_weight", "(rows,)", torch.float8_e4m3fn)
    made = [
        stored("flux nf4", [*few, "double_blocks.0.img_attn.norm"], format_files.pack_4bit(native, few)[0]),
        stored("flux nested nf4", few, format_files.pack_4bit(native, few, double_quant=True)[0]),
        stored("flux int8", few, format_files.pack_with_linear8bit(native, few)[0]),
        stored("flux scaled fp8", few, format_files.as_scaled_float8(native, few, *scaled)[0]),
        stored("t5 nf4", [*in_t5, "shared"], format_files.pack_4bit(t5, in_t5)[0]),
    ]
    saved = root / "diffusers"
    packed = ("transformer_blocks.0.attn.to_", "norm_out.linear")
    linears = [n for n, m in flux.named_modules() if isinstance(m, torch.nn.Linear)]
    skipped = tuple(n for n in linears if not n.startswith(packed))
    format_files.flux_folder_by_diffusers(flux, QuantConfig("nf4", skip_modules=skipped), saved)
    raw = RawFile.read(
        saved / format_files.DIFFUSERS_WEIGHTS,
        folder_files={"config.json": (saved / "config.json").read_bytes()},
        name=format_files.DIFFUSERS_WEIGHTS,
    )
    made.append(Form("diffusers nf4", raw, ["transformer_blocks.0.attn.to_k", "norm_out"]))
    return {form.name: form for form in made}
