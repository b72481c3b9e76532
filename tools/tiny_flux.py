"""A FLUX small enough for a git repository: its parts, its text, its sampling and its four files.

Every part is a class of diffusers or transformers with FLUX.1-dev's structure and small widths. The files are
laid out as FLUX's own: BFL's native names for the transformer, and names that ComfyUI's text encoder and TAESD
classes load. Linear widths are multiples of 64 so that blockwise 4-bit and int8 kernels take every layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from einops import rearrange
from native_names import native_state_dict, swap_halves
from quantflux.quant_core.flux import names
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

FLUX = {
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 4,
    "in_channels": 64,
    "axes_dims_rope": (16, 56, 56),
    "joint_attention_dim": 128,
    "pooled_projection_dim": 64,
    "guidance_embeds": True,
}
T5 = {"d_model": 128, "d_kv": 64, "num_heads": 2, "d_ff": 256, "num_layers": 4, "vocab_size": 32128}
CLIP = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 256}
T5_TOKENS, CLIP_TOKENS = 256, 77
LATENT_CHANNELS, DOWNSCALE, PATCH = 16, 8, 2
VAE_SCALE, VAE_SHIFT = 0.3611, 0.1159  # FLUX's latent format: the flow sees (latent - shift) * scale
SHIFT = 1.15  # the mu of FLUX.1-dev's time shift
ZERO_AT_START = ("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
FILES = {part: f"{part}_tiny.safetensors" for part in ("flux", "t5", "clip_l", "taef")}


@dataclass
class TinyFlux:
    flux: FluxTransformer2DModel
    t5: T5EncoderModel
    clip_l: CLIPTextModel
    taef: AutoencoderTiny

    def parts(self) -> dict[str, nn.Module]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def device(self) -> torch.device:
        return self.flux.device


def build(device: torch.device | str = "cpu") -> TinyFlux:
    """Untrained parts in float32; modulation and output start at zero, so each block starts as the identity."""
    flux = FluxTransformer2DModel(**FLUX)
    for name, module in flux.named_modules():
        if name == "proj_out" or name.endswith(ZERO_AT_START):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    # keeps the residual stream, and with it the timestep, in float32 under autocast
    flux.x_embedder.register_forward_hook(_as_float32)
    t5_config = T5Config(feed_forward_proj="gated-gelu", dropout_rate=0.0, attn_implementation="eager", **T5)
    # CLIPTextConfig's defaults are CLIP-L's tokens, activation and epsilon
    clip_config = CLIPTextConfig(attn_implementation="eager", **CLIP)
    t5, clip_l = T5EncoderModel(t5_config), CLIPTextModel(clip_config)
    taef = AutoencoderTiny(latent_channels=LATENT_CHANNELS)
    return TinyFlux(*(part.to(device) for part in (flux, t5, clip_l, taef)))


def _as_float32(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.float()


# ---- text ----


@dataclass
class Tokenizers:
    t5: T5TokenizerFast
    clip: CLIPTokenizer

    @classmethod
    def load(cls, t5_folder: str, clip_folder: str) -> Tokenizers:
        return cls(T5TokenizerFast.from_pretrained(t5_folder), CLIPTokenizer.from_pretrained(clip_folder))

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token numbers ``(n, 256)`` for T5, padded with 0, and ``(n, 77)`` for CLIP, padded with its end."""
        t5 = self.t5(texts, padding="max_length", max_length=T5_TOKENS, truncation=True)["input_ids"]
        clip = self.clip(texts, truncation=True, max_length=CLIP_TOKENS)["input_ids"]
        clip = [ids + [self.clip.eos_token_id] * (CLIP_TOKENS - len(ids)) for ids in clip]
        return torch.tensor(t5), torch.tensor(clip)


def encode_text(model: TinyFlux, t5_ids: Tensor, clip_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Text states ``(n, 256, 128)``, padding included and unmasked as in FLUX, and the pooled ``(n, 64)``."""
    states = model.t5(input_ids=t5_ids).last_hidden_state
    return states, model.clip_l(input_ids=clip_ids).pooler_output


# ---- flow ----


def shifted(t: Tensor) -> Tensor:
    """FLUX's time shift of ``t`` in (0, 1]: noise levels as the sampler visits them."""
    return math.exp(SHIFT) / (math.exp(SHIFT) + 1 / t - 1)


def simple_schedule(steps: int) -> Tensor:
    """ComfyUI's "simple" noise levels: ``steps + 1`` numbers from 1 to 0."""
    table = shifted(torch.arange(1, 10001) / 10000)
    return torch.stack([table[-(1 + int(i * len(table) / steps))] for i in range(steps)] + [torch.tensor(0.0)])


def velocity(flux: nn.Module, latents: Tensor, t: Tensor, guidance: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    """The predicted ``noise - picture`` for ``latents`` ``(n, 16, h, w)`` at noise levels ``t`` ``(n,)``."""
    h, w = latents.shape[-2] // PATCH, latents.shape[-1] // PATCH
    rows, columns = torch.meshgrid(*(torch.arange(m, device=latents.device) for m in (h, w)), indexing="ij")
    image_ids = torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(h * w, 3).float()
    out = flux(
        hidden_states=rearrange(latents, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=PATCH, pw=PATCH),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=t,
        guidance=guidance,
        img_ids=image_ids,
        txt_ids=torch.zeros(text.shape[1], 3, device=latents.device),
        return_dict=False,
    )[0]
    return rearrange(out, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=h, w=w, ph=PATCH, pw=PATCH)


@torch.no_grad()
def sample(
    model: TinyFlux,
    tokens: tuple[Tensor, Tensor],
    steps: int = 20,
    guidance: float = 3.5,
    seed: int = 0,
    side: int = 128,
) -> Tensor:
    """Pictures ``(n, 3, side, side)`` in 0..1: Euler over the "simple" schedule, noise from the CPU by ``seed``."""
    text, pooled = encode_text(model, *(ids.to(model.device) for ids in tokens))
    n = len(text)
    shape = (n, LATENT_CHANNELS, side // DOWNSCALE, side // DOWNSCALE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    scale = torch.full((n,), guidance, device=model.device)
    levels = simple_schedule(steps)
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        t = now.expand(n).to(model.device)
        latents = latents + (after - now).item() * velocity(model.flux, latents, t, scale, text, pooled).float()
    return (model.taef.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)


# ---- files ----


def _taesd_names(model: AutoencoderTiny) -> dict[str, str]:
    """AutoencoderTiny's tensor names -> TAESD's, whose decoder counts its clamp as layer 0."""
    taesd = {}
    for name in model.state_dict():
        half, _, number, rest = name.split(".", 3)
        taesd[name] = f"taesd_{half}.{int(number) + (half == 'decoder')}.{rest}"
    return taesd


def _diffusers_state_dict(native: dict[str, Tensor], rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """``native`` split into the parts that ``rows``, a diffusers state dict, gives the row counts of."""
    depth = (FLUX["num_layers"], FLUX["num_single_layers"])
    state = {}
    for template, source in names.NORMS.items():
        for i in range(depth[not template.startswith("double")]):
            state[source.format(i)] = native[template.format(i)]
    for module in names.native_names(names.LINEARS, *depth):
        parts = names.diffusers_parts(module)
        for leaf in ("weight", "bias"):
            stacked = native[f"{module}.{leaf}"]
            stacked = swap_halves(stacked) if module in names.SWAPPED_HALVES else stacked
            sizes = [len(rows[f"{part}.{leaf}"]) for part in parts]
            state |= dict(zip([f"{part}.{leaf}" for part in parts], stacked.split(sizes), strict=True))
    return state


def save(model: TinyFlux, folder: Path, used_t5: Tensor, used_clip: Tensor) -> None:
    """Writes the four files in bfloat16; embedding rows of tokens outside ``used_t5`` and ``used_clip`` become zero."""
    states = {part: {k: v.detach().cpu() for k, v in m.state_dict().items()} for part, m in model.parts().items()}
    t5 = {name: v for name, v in states["t5"].items() if name != "encoder.embed_tokens.weight"}
    clip_l = {f"text_model.{name.removeprefix('text_model.')}": v for name, v in states["clip_l"].items()}
    for state, name, used in (
        (t5, "shared.weight", used_t5),
        (clip_l, "text_model.embeddings.token_embedding.weight", used_clip),
    ):
        kept = torch.zeros_like(state[name])
        kept[used] = state[name][used]
        state[name] = kept
    taesd = _taesd_names(model.taef)
    taef = {taesd[name]: v for name, v in states["taef"].items()}
    taef |= {"vae_scale": torch.tensor(VAE_SCALE), "vae_shift": torch.tensor(VAE_SHIFT)}
    files = {"flux": native_state_dict(states["flux"]), "t5": t5, "clip_l": clip_l, "taef": taef}
    folder.mkdir(parents=True, exist_ok=True)
    for part, state in files.items():
        keep = {"vae_scale", "vae_shift"}  # rounded, they would differ from the host's latent format
        state = {k: v.contiguous() if k in keep else v.bfloat16().contiguous() for k, v in state.items()}
        save_file(state, folder / FILES[part], metadata={"format": "pt"})


def load(folder: Path, device: torch.device | str = "cpu") -> TinyFlux:
    """The parts from the four files, in float32."""
    model = build()
    files = {part: {k: v.float() for k, v in load_file(folder / name).items()} for part, name in FILES.items()}
    model.flux.load_state_dict(_diffusers_state_dict(files["flux"], model.flux.state_dict()))
    files["t5"]["encoder.embed_tokens.weight"] = files["t5"]["shared.weight"]
    model.t5.load_state_dict(files["t5"])
    prefixed = any(name.startswith("text_model.") for name in model.clip_l.state_dict())
    clip_l = {k if prefixed else k.removeprefix("text_model."): v for k, v in files["clip_l"].items()}
    model.clip_l.load_state_dict(clip_l)
    model.taef.load_state_dict({name: files["taef"][taesd] for name, taesd in _taesd_names(model.taef).items()})
    for part in model.parts().values():
        part.to(device).eval()
    return model
