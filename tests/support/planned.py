"""A card as its plan is made for it, and the plan of a run on it."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from quantflux.quant_core.plan import Card, Plan, Row, plan, variants

GIB, MIB = 2**30, 2**20
RESERVE = int(0.8 * GIB) + 400 * MIB  # the host's, beside weights, on Linux
BFLOAT16 = torch.bfloat16, torch.bfloat16


def reserve(nbytes: int) -> dict[tuple[str, int], int]:
    """The same beside every transformer."""
    return dict.fromkeys(itertools.product(("none", "int8", "nf4", "fp4"), (2, 4)), nbytes)


def a_card(free: float, **changes) -> Card:
    """An H100 of which ``free`` GiB are free, with bitsandbytes' kernels, as when the results were recorded."""
    card = Card(
        name="NVIDIA H100 80GB HBM3",
        is_cpu=False,
        total=int(79.2 * GIB),
        free=int(free * GIB),
        loaded=0,
        workspace=32 * MIB,
        reserve=reserve(RESERVE),
        encoder_reserve=RESERVE,
        least_share=0.0,
        whole=False,
        none=False,
        buffers=3,
        encoder_on_cpu=False,
        vae_on_cpu=False,
        vae_dtype=torch.bfloat16,
        decode_estimate=2178 * MIB * 2,
    )
    return dataclasses.replace(card, **changes)


def planned(files, card=None, config=None, size=(1024, 1024, 1), dtypes=BFLOAT16) -> Plan:
    """Of ``files``, a transformer and a T5, for a picture of ``size`` (width, height, batch)."""
    return plan(variants(*files, config), *size, card or a_card(78.66), lambda variant: dtypes)


def row(plan: Plan, label: str) -> Row:
    return next(row for row in plan.rows if row.label == label)
