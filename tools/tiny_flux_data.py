"""What the small FLUX is trained on: drawn pictures, their captions, and noisy latents of them."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

import shape_scenes as scenes
import tiny_flux as tiny
import torch
from torch import Tensor

EMPTY_SHARE = 0.1  # of captions replaced by "", which trains the unconditional flow
LOWEST_GUIDANCE, HIGHEST_GUIDANCE = 1.0, 5.0
ATTRIBUTES = {
    "shape": scenes.SHAPES,
    "colour": scenes.COLOURS,
    "size": scenes.SIZES,
    "position": scenes.POSITIONS,
    "background": scenes.BACKGROUNDS,
}


@dataclass
class Pool:
    """Pictures ``(n, 3, 128, 128)`` in bytes and their captions' tokens. The last caption is the empty one.

    ``said`` ``(n + 1, 5)`` numbers what each caption says of shape, colour, size, position and background, 0 where it
    says nothing. What the encoders make of them follows once these are trained.
    """

    pictures: Tensor
    t5_ids: Tensor
    clip_ids: Tensor
    said: Tensor
    latents: Tensor | None = None
    text: Tensor | None = None
    pooled: Tensor | None = None


def draw_pool(n: int, tokenizers: tiny.Tokenizers, seed: int, device: str) -> Pool:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    drawn = [scenes.random_scene(rng) for _ in range(n)]
    pictures = torch.empty(n, 3, scenes.PICTURE, scenes.PICTURE, dtype=torch.uint8, device=device)
    for start in range(0, n, 512):
        batch = scenes.draw(drawn[start : start + 512], device=device, generator=generator)
        pictures[start : start + 512] = (batch * 255).round().byte()
    captions = [scenes.caption(scene, rng) for scene in drawn] + [""]
    ids = [part.to(device) for part in tokenizers(captions)]
    said = [said_attributes(scene, text) for scene, text in zip(drawn, captions, strict=False)] + [
        [0] * len(ATTRIBUTES)
    ]
    return Pool(pictures, *ids, torch.tensor(said, device=device))


def said_attributes(scene: scenes.Scene, text: str) -> list[int]:
    """For each of ``ATTRIBUTES`` the number of ``scene``'s value, counted from 1, or 0 if ``text`` does not say it."""
    numbers = []
    for name, values in ATTRIBUTES.items():
        value = getattr(scene, name)
        said = "background" in text if name == "background" else value in text.lower()
        numbers.append((list(values).index(value) + 1) * said)
    return numbers


def signed(pictures: Tensor) -> Tensor:
    """Bytes -> -1..1, in the memory layout that convolutions like."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def picked(n: int, batch: int, device: str) -> Tensor:
    return torch.randint(n, (batch,), device=device)


def caption_rows(rows: Tensor, pool: Pool) -> Tensor:
    """``rows`` with a share of them replaced by the row of the empty caption."""
    drop = torch.rand(rows.shape, device=rows.device) < EMPTY_SHARE
    return torch.where(drop, len(pool.said) - 1, rows)


@dataclass
class FlowBatch:
    noisy: Tensor
    t: Tensor
    guidance: Tensor
    target: Tensor
    text: Tensor
    pooled: Tensor

    def take(self, other: FlowBatch) -> None:
        """Overwrite this batch by another, in place."""
        for name, tensor in vars(self).items():
            tensor.copy_(getattr(other, name))


def flow_batch(pool: Pool, args: argparse.Namespace) -> FlowBatch:
    n = args.flow_batch
    rows = picked(len(pool.latents), n, args.device)
    latents = pool.latents[rows]
    noise = torch.randn_like(latents)
    t = tiny.shifted(torch.rand(n, device=args.device).clamp_min(1e-4))
    level = t[:, None, None, None]
    guidance = LOWEST_GUIDANCE + (HIGHEST_GUIDANCE - LOWEST_GUIDANCE) * torch.rand(n, device=args.device)
    captions = caption_rows(rows, pool)
    noisy = (1 - level) * latents + level * noise
    return FlowBatch(noisy, t, guidance, noise - latents, pool.text[captions].float(), pool.pooled[captions])
