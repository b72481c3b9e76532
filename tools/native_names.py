"""A transformer of diffusers under FLUX's native names, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from quantflux.quant_core.flux.config import count_blocks
from quantflux.quant_core.flux.names import LINEARS, NORMS, SWAPPED_HALVES, diffusers_parts, native_names


def native_state_dict(diffusers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A whole 16-bit diffusers transformer under native names.

    Source of the map: diffusers' own ``convert_flux_transformer_checkpoint_to_diffusers``, read backwards.
    Modules that the model does not have (no guidance embedding, say) are left out.

    Raises:
        KeyError: a module has some of its parts and lacks others.
    """
    double_blocks = count_blocks(diffusers, "transformer_blocks.")
    single_blocks = count_blocks(diffusers, "single_transformer_blocks.")
    native: dict[str, torch.Tensor] = {}
    for module in native_names(LINEARS, double_blocks, single_blocks):
        parts = diffusers_parts(module)
        for leaf in ("weight", "bias"):
            if f"{parts[0]}.{leaf}" not in diffusers:
                continue
            rows = torch.cat([diffusers[f"{part}.{leaf}"] for part in parts])
            native[f"{module}.{leaf}"] = swap_halves(rows) if module in SWAPPED_HALVES else rows
    for template, source in NORMS.items():
        number_of_blocks = double_blocks if template.startswith("double") else single_blocks
        for i in range(number_of_blocks):
            native[template.format(i)] = diffusers[source.format(i)]
    return native


def swap_halves(rows: torch.Tensor) -> torch.Tensor:
    """``rows``, an even number of them, with their two halves exchanged."""
    return rows.roll(len(rows) // 2, 0)
