"""The model card of a quantized model: what it is, how it was packed, how it is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from ..config import QuantConfig
from ..folder import INDEX_SUFFIX, folder_config, weight_files
from ..header import explained
from ..recipe import METADATA_KEY

_TEXT = """
# {title}

{what} Its 16-bit weights came from `{source}`{base}, whose licence applies.

| | |
|---|---|
{rows}

## diffusers and transformers

```python
{code}
```

## ComfyUI

With the QuantFlux nodes: download the repository into the models folder,

```
hf download {repo_id}{cli_revision} --local-dir ComfyUI/models/{models_folder}/{title}
```

and choose `{title}` in **{node}**. It needs no config: the model keeps its own quantization.
"""

_FLUX_CODE = """import torch
from diffusers import FluxTransformer2DModel

transformer = FluxTransformer2DModel.from_pretrained("{repo_id}"{revision}, torch_dtype=torch.bfloat16)"""

_T5_CODE = """import torch
from transformers import T5EncoderModel

text_encoder_2 = T5EncoderModel.from_pretrained("{repo_id}"{revision}, torch_dtype=torch.bfloat16)"""


def model_card(folder: str, repo_id: str, revision: str | None = None) -> ModelCard:
    """The card for a folder that this project saved.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    config = folder_config(folder)
    is_flux = config.get("_class_name") == "FluxTransformer2DModel"
    written = _written(folder)
    wire = config.get("quantization_config")
    quantization = None if wire is None else QuantConfig.from_hugging_face(wire)
    label = "16-bit" if quantization is None else quantization.describe()
    base_model = written.get("base_model")
    where = f', revision="{revision}"' if revision else ""
    code = (_FLUX_CODE if is_flux else _T5_CODE).format(repo_id=repo_id, revision=where)
    text = _TEXT.format(
        title=repo_id.rpartition("/")[2],
        what=f"The {'transformer of FLUX' if is_flux else 'T5 encoder'}, {label}"
        + ("." if quantization is None else ", packed by bitsandbytes."),
        source=written.get("source") or "an unknown file",
        base=f" of [{base_model}](https://huggingface.co/{base_model})" if base_model else "",
        rows="\n".join(f"| {name} | {value} |" for name, value in _rows(quantization, written).items()),
        code=code,
        repo_id=repo_id,
        cli_revision=f" --revision {revision}" if revision else "",
        node="Load Quantized Transformer" if is_flux else "Load Quantized T5",
        models_folder="diffusion_models" if is_flux else "text_encoders",
    )
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="quantized" if base_model else None,
        library_name="diffusers" if is_flux else "transformers",
        pipeline_tag="text-to-image" if is_flux else None,
        tags=["quantflux", "flux", "text-to-image", *(["bitsandbytes"] if quantization else [])],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def _written(folder: str) -> Mapping[str, Any]:
    """What this project wrote beside the weights; empty for a folder of others."""
    files, _ = weight_files(folder)
    with explained(files[0]), safe_open(files[0], framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    try:
        written = json.loads(text)
    except ValueError:
        # nothing of ours, whatever it is
        return {}
    return written if isinstance(written, dict) else {}


def _rows(config: QuantConfig | None, written: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    if config is not None:
        rows["precision"] = config.precision
        if config.is_four_bit:
            rows |= {"blocksize": written.get("blocksize") or 64, "double quantization": config.double_quant}
        else:
            rows["LLM.int8() threshold"] = f"{config.int8_threshold:g}"
        kept = ", ".join(f"`{name}`" for name in config.skip_modules)
        rows["layers at 16 bit"] = kept or "none"
    if written.get("source_header_sha256"):
        rows["SHA-256 of the source's header"] = f"`{written['source_header_sha256']}`"
    versions = written.get("versions")
    if isinstance(versions, dict):
        rows["made with"] = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    return rows


def folder_files(folder: str) -> tuple[str, list[str]]:
    """(``config.json``, files of weights and their index) of a folder, by name."""
    weights, _ = weight_files(folder)
    names = [os.path.basename(path) for path in weights]
    indexes = [name for name in sorted(os.listdir(folder)) if name.endswith(INDEX_SUFFIX)]
    return "config.json", names + (indexes if len(names) > 1 else [])
