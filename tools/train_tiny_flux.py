"""Trains the small FLUX of ``tests/assets/tiny_flux`` on pictures that :mod:`shape_scenes` draws.

    python tools/train_tiny_flux.py --out OUT --t5-tokenizer DIR --clip-tokenizer DIR

Four trainings, each bounded by the clock: the autoencoder; both text encoders, on naming what a caption says; the
transformer (rectified flow), with the text encoders frozen; and its guidance input, distilled from classifier-free
guidance as FLUX.1-dev's was (Meng et al. 2023, "On Distillation of Guided Diffusion Models"). Then it scores prompts
with the exported, rounded weights and writes ``eval.json`` and ``contact_sheet.png``. ``--tiny`` walks through all of
it on a CPU in two minutes. ``--resume`` goes on from an earlier run's files; a training of 0 minutes is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import shape_scenes as scenes
import tiny_flux as tiny
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tiny_flux_data import ATTRIBUTES, FlowBatch, Pool, caption_rows, draw_pool, flow_batch, picked, signed
from torch import Tensor, nn
from training_loop import Average, Report, adamw, clock, descend, replayed

EVAL_SEED = 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, eval.json and contact_sheet.png")
    parser.add_argument("--resume", type=Path, help="folder with an earlier run's four files to start from")
    parser.add_argument("--t5-tokenizer", required=True, help="T5's tokenizer folder")
    parser.add_argument("--clip-tokenizer", required=True, help="CLIP-L's tokenizer folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vae-minutes", type=float, default=1.7)
    parser.add_argument("--text-minutes", type=float, default=0.7)
    parser.add_argument("--flow-minutes", type=float, default=6.0)
    parser.add_argument("--distil-minutes", type=float, default=1.0)
    parser.add_argument("--pool", type=int, default=65536, help="pictures drawn once and reused")
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--flow-batch", type=int, default=256)
    parser.add_argument("--vae-rate", type=float, default=1e-3)
    parser.add_argument("--text-rate", type=float, default=1e-3)
    parser.add_argument("--flow-rate", type=float, default=1e-3)
    parser.add_argument("--distil-rate", type=float, default=3e-4)
    parser.add_argument("--prompts", type=int, default=1000, help="captions to score")
    parser.add_argument("--steps", type=int, default=20, help="Euler steps of each scored picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="launch kernels one by one, not as a CUDA graph")
    parser.add_argument("--math-attention", action="store_true", help="attention as plain matrix products")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes: does everything run?")
    args = parser.parse_args()
    if args.tiny:
        args.vae_minutes = args.text_minutes = args.flow_minutes = args.distil_minutes = 0.05
        args.pool, args.vae_batch, args.flow_batch, args.prompts = 32, 4, 4, 4
        args.steps = 2
    return args


# ---- training ----


def train_vae(taef: nn.Module, pool: Pool, args: argparse.Namespace, autocast: Callable) -> None:
    """Reconstruction, with latents held to mean 0 and deviation 1 per channel and inside TAESD's clamp at 3."""
    parameters = list(taef.parameters())
    optimizer, report = adamw(parameters), Report("vae")
    taef.to(memory_format=torch.channels_last)
    for _ in clock("vae", args.vae_minutes, optimizer, args.vae_rate, hold=0.3):
        pictures = signed(pool.pictures[picked(len(pool.pictures), args.vae_batch, args.device)])
        with autocast():
            latents = taef.encode(pictures).latents.float()
            noisy = latents + 0.1 * torch.rand_like(latents[:, :1, :1, :1]) * torch.randn_like(latents)
            output = taef.decode(noisy).sample.float()
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        centred = mean.square().mean() + (deviation - 1).square().mean()
        outside = F.relu(latents.abs() - 2.5).square().mean()
        loss = F.l1_loss(output, pictures) + F.mse_loss(output, pictures) + 0.05 * centred + 0.5 * outside
        descend(loss, optimizer, parameters)
        report(loss)


@torch.no_grad()
def encode_pool(taef: nn.Module, pool: Pool, autocast: Callable) -> None:
    batches = []
    for part in pool.pictures.split(512):
        with autocast():
            batches.append(taef.encode(signed(part)).latents.float())
    pool.latents = torch.cat(batches).contiguous()
    z = pool.latents
    print(f"latents: mean {z.mean():.3f}, deviation {z.std():.3f}, largest {z.abs().max():.2f}", flush=True)


def train_text(model: tiny.TinyFlux, pool: Pool, args: argparse.Namespace, autocast: Callable) -> None:
    """Every state of T5, padding too, and CLIP's pooled text learn to tell all that the caption says.

    Without this the transformer has to find out from noise which words matter, and takes far longer.
    """
    sizes = [len(values) + 1 for values in ATTRIBUTES.values()]
    heads = [
        nn.Linear(width, sum(sizes), device=args.device) for width in (tiny.T5["d_model"], tiny.CLIP["hidden_size"])
    ]
    parameters = [p for module in (model.t5, model.clip_l, *heads) for p in module.parameters()]
    optimizer, report = adamw(parameters), Report("text")
    for _ in clock("text", args.text_minutes, optimizer, args.text_rate, hold=0.4):
        rows = caption_rows(picked(len(pool.pictures), args.flow_batch, args.device), pool)
        with autocast():
            text, pooled = tiny.encode_text(model, pool.t5_ids[rows], pool.clip_ids[rows])
            answers = torch.cat((heads[0](text), heads[1](pooled)[:, None]), 1).float()
        wanted = pool.said[rows, None].expand(-1, answers.shape[1], -1)
        parts = zip(answers.split(sizes, -1), wanted.unbind(-1), strict=True)
        loss = sum(F.cross_entropy(answer.flatten(0, 1), want.flatten()) for answer, want in parts)
        descend(loss, optimizer, parameters)
        report(loss)


@torch.no_grad()
def encode_captions(model: tiny.TinyFlux, pool: Pool) -> None:
    """Fills ``pool.text`` and ``pool.pooled``, with the encoders' weights rounded as they will be exported."""
    for module in (model.t5, model.clip_l):
        for parameter in module.requires_grad_(False).parameters():
            parameter.copy_(parameter.bfloat16())
    batches = zip(pool.t5_ids.split(512), pool.clip_ids.split(512), strict=True)
    encoded = [tiny.encode_text(model, *ids) for ids in batches]
    pool.text = torch.cat([text.bfloat16() for text, _ in encoded])
    pool.pooled = torch.cat([pooled for _, pooled in encoded])


def train_transformer(
    name: str,
    model: tiny.TinyFlux,
    pool: Pool,
    args: argparse.Namespace,
    loss_of: Callable[[FlowBatch], Tensor],
    minutes: float,
    rate: float,
) -> None:
    """Descends on ``loss_of`` fresh batches and leaves the average of the weights in place."""
    if minutes <= 0:
        return
    parameters = list(model.flux.parameters())
    optimizer, average, report = adamw(parameters), Average([model.flux]), Report(name)
    batch = flow_batch(pool, args)

    def step() -> Tensor:
        loss = loss_of(batch)
        descend(loss, optimizer, parameters)
        average.update()
        return loss

    step = replayed(step, args)
    for _ in clock(name, minutes, optimizer, rate, hold=0.4):
        batch.take(flow_batch(pool, args))
        report(step())
    average.put_in_place()


def train_flow(model: tiny.TinyFlux, pool: Pool, args: argparse.Namespace, autocast: Callable) -> None:
    """Rectified flow; the guidance input is noise in this phase."""

    def loss_of(b: FlowBatch) -> Tensor:
        with autocast():
            out = tiny.velocity(model.flux, b.noisy, b.t, b.guidance, b.text, b.pooled).float()
        return F.mse_loss(out, b.target)

    train_transformer("flow", model, pool, args, loss_of, args.flow_minutes, args.flow_rate)


def distil_guidance(model: tiny.TinyFlux, pool: Pool, args: argparse.Namespace, autocast: Callable) -> None:
    """Trains the transformer to do in one pass what its frozen copy does in two: guidance g is the weight
    ``w = 1 + (g - 1) / 4`` of classifier-free guidance, so 1 is none and 5 the strongest, ``w = 2``."""
    teacher = copy.deepcopy(model.flux).eval().requires_grad_(False)

    def loss_of(b: FlowBatch) -> Tensor:
        no_text, no_pooled = (v[-1:].float().expand(len(b.t), *v.shape[1:]) for v in (pool.text, pool.pooled))
        with autocast():
            with torch.no_grad():
                with_text = tiny.velocity(teacher, b.noisy, b.t, b.guidance, b.text, b.pooled).float()
                without = tiny.velocity(teacher, b.noisy, b.t, b.guidance, no_text, no_pooled).float()
                weight = (1 + (b.guidance - 1) / 4)[:, None, None, None]
            out = tiny.velocity(model.flux, b.noisy, b.t, b.guidance, b.text, b.pooled).float()
        return F.mse_loss(out, without + weight * (with_text - without))

    train_transformer("distil", model, pool, args, loss_of, args.distil_minutes, args.distil_rate)


# ---- results ----


def evaluate(
    model: tiny.TinyFlux, tokenizers: tiny.Tokenizers, args: argparse.Namespace, guidance: float, autocast: Callable
) -> dict:
    """Shares of prompts whose picture shows the right shape, colour and both."""
    n = args.prompts
    wanted = scenes.prompts(n, EVAL_SEED)
    found = []
    for start in range(0, n, 200):
        tokens = tokenizers([text for text, _, _ in wanted[start : start + 200]])
        with autocast():
            pictures = tiny.sample(model, tokens, steps=args.steps, guidance=guidance, seed=EVAL_SEED + start)
        found += scenes.read(pictures)
    shape = [f.shape == w[1] for f, w in zip(found, wanted, strict=True)]
    colour = [f.colour == w[2] for f, w in zip(found, wanted, strict=True)]
    both = [a and b for a, b in zip(shape, colour, strict=True)]
    wrong = [f"{w[0]} -> {f.colour} {f.shape}" for f, w, ok in zip(found, wanted, both, strict=True) if not ok]
    shares = {"shape": sum(shape) / n, "colour": sum(colour) / n, "both": sum(both) / n}
    shares["both_of_first_200"] = sum(both[:200]) / len(both[:200])
    return {"prompts": n, "steps": args.steps, "guidance": guidance, **shares, "wrong": wrong[:20]}


def contact_sheet(
    model: tiny.TinyFlux, tokenizers: tiny.Tokenizers, args: argparse.Namespace, autocast: Callable, n: int = 24
) -> None:
    """Pictures of the first ``n`` prompts with the prompts under them."""
    n = min(n, args.prompts)
    texts = [text for text, _, _ in scenes.prompts(n, EVAL_SEED)]
    with autocast():
        pictures = tiny.sample(model, tokenizers(texts), steps=args.steps, seed=EVAL_SEED)
    columns, cell, line = 6, 176, 34
    sheet = Image.new("RGB", (columns * cell, -(-n // columns) * (cell + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        x, y = i % columns * cell, i // columns * (cell + line)
        pixels = (picture.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        sheet.paste(Image.fromarray(pixels), (x + 24, y + 24))
        pen.text((x + 4, y + cell - 20), text[:29], fill="black")
        pen.text((x + 4, y + cell - 6), text[29:58], fill="black")
    sheet.save(args.out / "contact_sheet.png")


def main() -> None:
    args = arguments()
    began = time.monotonic()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True

    # With torch 2.11's default choice of attention kernels the backward pass once ended in an illegal memory access
    # on an H100; with these it ran. Which of them was at fault was not looked into (see pytorch/pytorch#196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_flash_sdp(not args.math_attention)

    def autocast() -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16, enabled=args.device.startswith("cuda"))

    tokenizers = tiny.Tokenizers.load(args.t5_tokenizer, args.clip_tokenizer)
    pool = draw_pool(args.pool, tokenizers, args.seed, args.device)
    used = [ids.unique().cpu() for ids in (pool.t5_ids, pool.clip_ids)]  # begin, end and padding included
    model = tiny.load(args.resume, args.device) if args.resume else tiny.build(args.device)
    print(f"pool of {args.pool} after {time.monotonic() - began:.0f} s", flush=True)

    train_vae(model.taef, pool, args, autocast)
    encode_pool(model.taef.requires_grad_(False), pool, autocast)
    train_text(model, pool, args, autocast)
    encode_captions(model, pool)
    print(f"captions encoded after {time.monotonic() - began:.0f} s", flush=True)
    scores = {}
    for name, train in (("flow", train_flow), ("distil", distil_guidance)):
        train(model, pool, args, autocast)
        tiny.save(model, args.out, *used)
        rounded = tiny.load(args.out, args.device)
        for guidance in (3.5,) if name == "flow" else (1.0, 3.5, 5.0):
            scores[f"{name}, guidance {guidance}"] = evaluate(rounded, tokenizers, args, guidance, autocast)
        (args.out / "eval.json").write_text(json.dumps(scores, indent=2))
        contact_sheet(rounded, tokenizers, args, autocast)
        print({key: {k: v for k, v in s.items() if k != "wrong"} for key, s in scores.items()}, flush=True)
    print(f"done after {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
