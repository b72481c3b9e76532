"""ComfyUI-GGUF: a .gguf file of the same weights, and that pack's own loader from the folder COMFYUI_GGUF_PATH.

    python benchmarks/peer_gguf.py flux.safetensors q8_0

writes flux-q8_0.gguf beside it (12.7 GB; q4_0: 6.8 GB) with the package ``gguf``. ``compare.py`` does it by itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys

import torch

BLOCK = 32  # weights that share a scale


def q8_0(rows: torch.Tensor) -> torch.Tensor:
    """(n, 32) float32 → (n, 34) bytes: a float16 scale, then 32 int8. Bit for bit what gguf's numpy makes."""
    largest = rows.abs().amax(1, keepdim=True)
    # by a tensor: a GPU would multiply by the inverse of a number
    scale = largest / torch.full_like(largest, 127)
    scaled = rows * _inverse(scale)
    # away from zero at a half, where torch rounds to even
    values = scaled.sign() * (scaled.abs().floor() + (2 * (scaled.abs() - scaled.abs().floor())).floor())
    return torch.cat([scale.half().view(torch.uint8), values.to(torch.int8).view(torch.uint8)], 1)


def q4_0(rows: torch.Tensor) -> torch.Tensor:
    """(n, 32) float32 → (n, 18) bytes: a float16 scale, then two weights a byte, the 16th with the first."""
    size = rows.abs()
    places = torch.arange(BLOCK, dtype=torch.int8, device=rows.device)
    # the first of several that are largest: argmax does not promise that on a GPU
    first = torch.where(size == size.amax(1, keepdim=True), places, BLOCK).amin(1, keepdim=True)
    scale = rows.gather(1, first.long()) / -8
    values = (rows * _inverse(scale) + 8.5).trunc().to(torch.uint8).clamp(0, 15)
    return torch.cat([scale.half().view(torch.uint8), values[:, :16] | values[:, 16:] << 4], 1)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


KINDS = {"q8_0": q8_0, "q4_0": q4_0}


def quantize(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """(rows, columns) of any device and float type → (rows, bytes of a row)."""
    return KINDS[kind](weight.float().reshape(-1, BLOCK)).reshape(len(weight), -1)


def beside(checkpoint: str, kind: str) -> str:
    return f"{os.path.splitext(checkpoint)[0]}-{kind}.gguf"


def write(checkpoint: str, kind: str):
    """The weights of the blocks quantized, the other weights float16, biases and norms float32."""
    import gguf
    from safetensors import safe_open

    types = gguf.GGMLQuantizationType
    device = "cuda" if torch.cuda.is_available() else "cpu"
    writer = gguf.GGUFWriter(beside(checkpoint, kind), "flux")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    with safe_open(checkpoint, "pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if tensor.ndim == 1:
                data, stored_as = tensor.float(), types.F32
            elif "_blocks." in name:
                data, stored_as = quantize(tensor.to(device), kind).cpu(), types[kind.upper()]
            else:
                data, stored_as = tensor.half(), types.F16
            writer.add_tensor(name, data.numpy(), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf(kind: str):
    """A loader for ``variants.py``: the pack's node Unet Loader (GGUF)."""

    def load(checkpoint: str):
        import folder_paths

        folder, name = os.path.split(os.path.abspath(beside(checkpoint, kind)))
        folder_paths.add_model_folder_path("diffusion_models", folder)
        return _pack().UnetLoaderGGUF().load_unet(name)[0]

    return load


def _pack():
    """Its nodes.py, imported as the host imports custom nodes."""
    folder = os.environ.get("COMFYUI_GGUF_PATH")
    if not folder:
        raise SystemExit("Where ComfyUI-GGUF is, is not known: give its folder as COMFYUI_GGUF_PATH, or --gguf.")
    path = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location("comfyui_gguf", path, submodule_search_locations=[folder])
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module("comfyui_gguf.nodes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("kind", choices=KINDS)
    arguments = parser.parse_args()
    with torch.inference_mode():
        write(arguments.checkpoint, arguments.kind)
    print(json.dumps({"path": beside(arguments.checkpoint, arguments.kind)}))


if __name__ == "__main__":
    main()
