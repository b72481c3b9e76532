"""What the notes on the templates say, and which files the canvas is told to offer.

Every number in a note stands in the README or in docs/, with the machine that it was measured on.
"""

from __future__ import annotations

HUB = "https://huggingface.co"
BFL = f"{HUB}/black-forest-labs"
TEXT_ENCODERS = f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main"

# file -> (where to get it, model folder), for the canvas to offer
DOWNLOADS = {
    "flux1-dev.safetensors": (f"{BFL}/FLUX.1-dev/resolve/main", "diffusion_models"),
    "flux1-kontext-dev.safetensors": (f"{BFL}/FLUX.1-Kontext-dev/resolve/main", "diffusion_models"),
    "flux1-fill-dev.safetensors": (f"{BFL}/FLUX.1-Fill-dev/resolve/main", "diffusion_models"),
    "ae.safetensors": (f"{BFL}/FLUX.1-dev/resolve/main", "vae"),
    "t5xxl_fp16.safetensors": (TEXT_ENCODERS, "text_encoders"),
    "clip_l.safetensors": (TEXT_ENCODERS, "text_encoders"),
    "FLUX-dev-lora-add_details.safetensors": (
        f"{HUB}/Shakker-Labs/FLUX.1-dev-LoRA-add-details/resolve/main", "loras"
    ),
    "Hyper-FLUX.1-dev-8steps-lora.safetensors": (f"{HUB}/ByteDance/Hyper-SD/resolve/main", "loras"),
    "diffusion_pytorch_model.safetensors": (
        f"{HUB}/Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro/resolve/main", "controlnet"
    ),
}  # fmt: skip

FILES = (
    "The canvas offers the downloads: {model}, T5-XXL, CLIP-L and the VAE, all at 16 bit. {model} and the VAE ask for "
    "a login and their licence. FLUX and T5 are packed while they are read; nothing is written."
)

NOTES = {
    "tiny_flux_text_to_image": """### QuantFlux: the small FLUX

Draws one coloured shape, in seconds on a CPU. Its files are in `tests/assets/tiny_flux` of the QuantFlux repository
and belong into the model folders `diffusion_models`, `text_encoders` and `vae`.

Choose another **precision** in Quantization Config and run again: the loader shows the memory that it takes.

Words it knows: circle, square, triangle, star, cross, ring, diamond, heart; small, medium, large; nine positions,
such as *in the top left*; and colours, also for the background. It is small, and draws best at a cfg of 2.""",
    "flux_dev_text_to_image": """### QuantFlux: FLUX.1-dev in 4 bit

1. The downloads that the canvas offers are the 16-bit originals; FLUX.1-dev and the VAE ask for a login and their
   licence.
2. **Quantization Config** says how they are packed while they are read: nf4 takes 6.2 GiB for the transformer
   instead of 22.2.
3. Run. Nothing is written: the next start reads the 16-bit file again. The template *flux_dev_save_packed* keeps what
   was packed.

`double_quant` saves another half GiB. `int8` is nearer to 16 bit and takes 11.1 GiB.""",
    "flux_dev_8bit": f"""### QuantFlux: FLUX.1-dev in 8 bit, LLM.int8()

{FILES.format(model="FLUX.1-dev")}

Nearer to 16 bit than 4 bit is, for twice the bytes: 11.1 GiB for the transformer (nf4: 6.2, 16 bit: 22.2), 4.6 for T5.
Needs an NVIDIA card from Turing on. On an H100 the peak while sampling 1024×1024 was 11.66 GiB.

**int8_threshold**: where an input column holds a value this large, that column is multiplied in 16 bit, so that
single outliers do not coarsen all other values. 6 is the usual value; 0 multiplies everything in 8 bit, and is
faster. It changes no byte of the weights.

To save memory where it matters less, give **Load Quantized T5** a Quantization Config of its own, with nf4.""",
    "flux_dev_low_vram": f"""### QuantFlux: FLUX.1-dev on a card of 8 GB

{FILES.format(model="FLUX.1-dev")}

What keeps it small:
- **nf4 with double_quant**, for both: 5.7 GiB for the transformer, 2.5 for T5. They take turns on the card.
- **VAE Decode (Tiled)** decodes 512×512 at a time. Smaller tiles take less still.

What does not fit is offloaded by itself: ComfyUI leaves as many layers of the transformer in main memory as it must,
and they are copied to the card while earlier layers compute. On an H100 of which other programs leave only so much
(0.51 GiB less is free once CUDA is there), nf4 without double_quant, a 1024×1024 picture:

| left, GiB | 8 | 6 | 4 |
|---|---|---|---|
| of the transformer on the card, GiB of 6.24 | 6.09 | 4.05 | 1.95 |
| time of a step, against the whole card | 1.02 | 1.05 | 1.16 |

The picture is the same to the bit, however much is offloaded. `--reserve-vram 1` leaves more of the card to other
programs; smaller pictures and a batch of one take fewer activations. **VRAM Plan** (template
*flux_dev_plan_and_quality*) tells beforehand what fits.""",
    "flux_dev_lora_stack": f"""### QuantFlux: two LoRAs on packed weights

{FILES.format(model="FLUX.1-dev")} The two LoRAs are offered as well.

Any LoRA for FLUX.1-dev works here, by the stock nodes, in any number:
- **Load LoRA** for transformer and text encoders. This one adds details.
- **Load LoRA (model only)** for the transformer alone. This one, Hyper-FLUX, makes 8 steps enough, at a strength of
  0.125: that is why KSampler has 8.

They run beside the packed weights in 16 bit, or are added as these are unpacked. None is rounded to 4 bit, so
strengths mean what they mean on a 16-bit model; 0 is the picture without them, to the bit. Beside the weights one LoRA
of rank 32 on every block costs 10 % of a step, three cost 11 % (H100).

Compile (template *flux_dev_compile*) may stand in front of them or behind.""",
    "flux_dev_controlnet": f"""### QuantFlux: a ControlNet on packed weights

{FILES.format(model="FLUX.1-dev")} The ControlNet, Shakker Labs' Union Pro, is offered too; it goes into the folder
`controlnet`.

1. Choose a picture in **Load Image**. **Canny** draws its edges; lower thresholds draw more of them.
2. **SetUnionControlNetType** has the names of another model's kinds. This file numbers its own kinds otherwise:

| to control by | choose |
|---|---|
| edges (canny) | openpose |
| tile | depth |
| depth | hed/pidi/scribble/ted |
| blur | canny/lineart/… |
| pose | normal |
| grey | segment |
| low quality | tile |

3. **strength** 0.3 to 0.5, and an **end_percent** under 1, leave FLUX room for the details.

For a depth or pose picture put its own preprocessor in the place of Canny. The ControlNet stays at 16 bit; it is not
in the figures of VRAM Plan.""",
    "flux_kontext_edit": f"""### QuantFlux: edit a picture with FLUX.1-Kontext-dev

{FILES.format(model="FLUX.1-Kontext-dev")}

1. Choose a picture in **Load Image**.
2. Write what is to change as an order: *make it a winter evening*, *remove the car*, *the same woman, seen from the
   side*.
3. Run. **Scale for Kontext** brings the picture to a size of about a megapixel that Kontext was trained on.

Kontext has FLUX.1-dev's sizes: 6.2 GiB at nf4. A reference doubles the tokens of a step, so a step takes longer than
text-to-image and more activations than VRAM Plan counts.

For a second picture, put another Load Image, Scale for Kontext, VAE Encode and **ReferenceLatent** behind the
first.""",
    "flux_fill_inpaint": f"""### QuantFlux: fill a part of a picture with FLUX.1-Fill-dev

{FILES.format(model="FLUX.1-Fill-dev")}

1. Choose a picture in **Load Image**.
2. Right-click the node, *Open in MaskEditor*, and paint over what is to be drawn anew. Without a mask nothing changes.
3. Write what is to be there, and run.

What is not painted over is kept, but for what the VAE changes. **Differential Diffusion** makes soft borders of the
mask count by degrees. Fill wants a guidance of about 30. It has FLUX.1-dev's sizes: 6.2 GiB at nf4.""",
    "flux_dev_from_hub": """### QuantFlux: a packed FLUX from the Hugging Face Hub

**hub_repo** names a repository of diffusers. Transformer and T5 are found in it, downloaded once into
huggingface_hub's cache, and stay packed as they are: nothing is quantized, and no Quantization Config is needed.
The canvas offers the other two files, CLIP-L and the VAE.

- `owner/name`, `owner/name@revision`, or a folder or file in it: `owner/name/path@revision`.
- A repository at 16 bit works too; it becomes nf4, or what a Quantization Config says.
- Gated or private: accept the licence on its page, then `hf auth login`, or set `HF_TOKEN`.
- Offline (`HF_HUB_OFFLINE=1`) what is in the cache is used.

A packed diffusers folder of FLUX.1-dev's sizes loads in 1.8 s once it is there (H100, files in the page cache).
Folders that transformers packed keep some layers of T5 at 16 bit and are larger for it.""",
    "flux_dev_save_packed": """### QuantFlux: pack once, keep the file

The canvas offers the downloads: FLUX.1-dev, T5-XXL and CLIP-L, all at 16 bit. FLUX.1-dev asks for a login and its
licence. FLUX and T5 are packed while they are read.

Run it once. **Save Quantized Model** then has written what is in memory, 6.2 GiB for the transformer and 2.7 for T5
at nf4:
- `output/diffusion_models/flux1-dev-nf4_00001_.safetensors`
- `output/clip/flux1-dev-nf4_00001_.safetensors`

The loaders list them at once. Choose them there, take the config away, and the 16-bit files are no longer needed: the
same bits, and 6.2 GiB to read instead of 22.2.

**format** *diffusers folder* writes what `from_pretrained` of diffusers and transformers loads.""",
    "flux_dev_plan_and_quality": f"""### QuantFlux: what will it take, and what does it cost?

{FILES.format(model="FLUX.1-dev")}

**1 · VRAM Plan** reads only the files' headers. For each precision: what it takes on this card at this size, what
would be offloaded, and the best that fits. Run this part alone by bypassing the other two groups (Ctrl-B).

**2 · Quality Report** samples with the packed model and with the same file at 16 bit from one noise: velocity error
and drift by step, weight error by layer. It takes three sampling runs, and the 16-bit model (22.2 GiB) is loaded too;
what does not fit is offloaded. Fewer steps, or a smaller size, are faster. For another precision, change
**Quantization Config**.

**3 · Memory Report**: bytes of each part now and at 16 bit, and where they are. Connect it behind whatever you want to
measure.

Charts can be saved with Save Image, the texts copied from the nodes.""",
    "flux_dev_compile": f"""### QuantFlux: torch.compile, block by block

{FILES.format(model="FLUX.1-dev")}

**Compile** needs Triton on an NVIDIA card, and a C++ compiler on a CPU. The first step takes long, since it compiles;
the others take less time than before. After sampling the node says what was compiled, how long it took, and what was
compiled again and why.

- **regional**: each block by itself, so that equal blocks share one compilation.
- Another prompt, seed or number of steps compiles nothing again. Another size does once, then all sizes fit
  (**dynamic** auto).
- LoRA loaders may stand in front of it or behind; changing a strength compiles nothing again.

No back end: choose `eager` to see the graph run without. On an H100 a 1024×1024 step took 0.88 of stock bf16's at nf4
(an older version) and 0.62 with **compute_dtype** float8; the first one took 16 s. How much faster your card becomes is
seen in the sampler's seconds per step.""",
}
