"""How long T5-XXL takes to encode a prompt: packed by our node against 16 bit by the host's loader and by ours.

    COMFYUI_PATH=/some/ComfyUI python benchmarks/random_parts.py FOLDER
    COMFYUI_PATH=/some/ComfyUI python benchmarks/t5.py FOLDER --out benchmarks/results/t5.jsonl

Each variant runs in a fresh process, rounds alternating. ``encode_s`` is T5 alone, ``clip_s`` what CLIP Text Encode
waits for, with CLIP-L: medians, with T5 on the device. The tokens are random, as many as asked for (the host fills a
prompt up to 256).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

from measure import GIB, peak_gib, relative_error, start_host, synchronize
from points import numbers
from records import Records, RunFailed, in_fresh_process, markdown

BASELINE = "stock-16bit"
CONFIGS = {
    "ours-16bit": {"precision": "none"},
    "ours-nf4": {"precision": "nf4"},
    "ours-nf4-dq": {"precision": "nf4", "double_quant": True},
    "ours-fp4": {"precision": "fp4"},
    "ours-int8-t0": {"precision": "int8", "int8_threshold": 0.0},
    "ours-int8-t6": {"precision": "int8", "int8_threshold": 6.0},
}
T5, CLIP_L = "t5.safetensors", "clip_l.safetensors"  # of random_parts.py
WARM_UP = 3
START, END, CLIP_L_LENGTH = 49406, 49407, 77


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--variants", default=",".join([BASELINE, *CONFIGS]))
    parser.add_argument("--tokens", type=numbers, default=[512, 256, 77])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", help="JSON lines, one measurement each; a Markdown table goes beside")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--references", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if BASELINE not in arguments.variants.split(","):
        parser.error(f"--variants must name {BASELINE}, which the ratios are taken to")
    return arguments


def load(variant: str, folder: str):
    """The CLIP."""
    import comfy.sd
    import folder_paths
    from quantflux.nodes.load_t5 import QuantFluxLoadT5
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.source import t5_source

    if variant == BASELINE:
        paths = [os.path.join(folder, name) for name in (T5, CLIP_L)]
        # for the small T5 of a trial: the host knows the sizes of T5-XXL only
        sizes = {"t5xxl_model_config": dataclasses.asdict(t5_source(open_checkpoint(paths[0])).model)}
        return comfy.sd.load_clip(paths, clip_type=comfy.sd.CLIPType.FLUX, model_options=sizes)
    folder_paths.add_model_folder_path("text_encoders", os.path.abspath(folder))
    return QuantFluxLoadT5.execute(T5, CLIP_L, QuantConfig(**CONFIGS[variant]))[0]


def tokens(count: int, vocabulary: int) -> dict[str, list]:
    """As a tokenizer would give them, none weighted."""
    import torch

    ids = torch.randint(3, vocabulary, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    short = [START, *(i % START for i in ids)][: CLIP_L_LENGTH - 1]
    short += [END] * (CLIP_L_LENGTH - len(short))
    return {"t5xxl": [[(i, 1.0) for i in ids]], "l": [[(i, 1.0) for i in short]]}


def timed(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call, synchronised."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def run_once(arguments: argparse.Namespace):
    """One variant; prints one JSON line for each number of tokens."""
    start_host()
    import torch

    with torch.inference_mode():
        start = time.perf_counter()
        clip = load(arguments.variant, arguments.folder)
        clip.load_model()
        synchronize()
        loaded = {"load_s": time.perf_counter() - start, "peak_load_gib": peak_gib()}
        t5 = clip.cond_stage_model.t5xxl
        loaded |= {"model_gib": clip.patcher.model_size() / GIB, "dtype": str(t5.transformer.dtype)}
        for count in arguments.tokens:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            given = tokens(count, t5.transformer.shared.num_embeddings)
            # also tells T5 its device, as the host does
            whole = timed(lambda given=given: clip.encode_from_tokens(given), arguments.repeats)
            seconds = timed(lambda given=given: t5.encode_token_weights(given["t5xxl"]), arguments.repeats)
            states = clip.encode_from_tokens(given)
            reference = arguments.references and os.path.join(arguments.references, f"{count}.pt")
            record = {
                "variant": arguments.variant,
                "text_tokens": count,
                "encode_s": statistics.median(seconds),
                "encode_min_s": min(seconds),
                "encode_max_s": max(seconds),
                "clip_s": statistics.median(whole),
                "peak_gib": peak_gib(),
                "finite": bool(states.isfinite().all()),
                "rel_err": relative_error(states.float().cpu(), reference, arguments.variant == BASELINE),
            }
            print(json.dumps(record | loaded), flush=True)


def measure(variant: str, arguments: argparse.Namespace, references: str) -> Iterator[dict]:
    lengths = ",".join(map(str, arguments.tokens))
    words = [arguments.folder, "--variant", variant, "--tokens", lengths, "--repeats", arguments.repeats]
    try:
        yield from in_fresh_process("t5.py", *words, "--references", references)
    except RunFailed as failure:
        yield {"variant": variant, "error": str(failure)}


def table(records: list[dict]) -> str:
    """Medians over the rounds, as Markdown."""
    lines = []
    for count, variant in dict.fromkeys((r["text_tokens"], r["variant"]) for r in records if "error" not in r):
        rows = [r for r in records if (r["variant"], r.get("text_tokens")) == (variant, count)]
        ms = [1000 * statistics.median(row[key] for row in rows) for key in ("encode_s", "clip_s")]
        lines.append(
            [
                str(count),
                variant,
                *(f"{one:.1f}" for one in ms),
                f"{statistics.median(row['ratio'] for row in rows):.3f}" if "ratio" in rows[0] else "",
                f"{max(row['peak_gib'] for row in rows):.2f}",
                f"{statistics.median(row['load_s'] for row in rows):.1f}",
                f"{rows[0]['rel_err']:.4f}" if rows[0]["rel_err"] is not None else "",
            ]
        )
    failed = [["", variant, "failed"] for variant in dict.fromkeys(r["variant"] for r in records if "error" in r)]
    header = "tokens", "variant", "T5 ms", "T5 and CLIP-L ms", "ratio", "peak GiB", "load s", "error"
    return markdown(header, lines + failed)


def main():
    arguments = parse()
    if arguments.variant:
        run_once(arguments)
        return
    records = Records(arguments.out)
    with tempfile.TemporaryDirectory() as references:
        for round_number in range(arguments.rounds):
            baseline: dict[int, float] = {}
            for variant in sorted(arguments.variants.split(","), key=BASELINE.__ne__):
                for record in measure(variant, arguments, references):
                    if "error" not in record:
                        if variant == BASELINE:
                            baseline[record["text_tokens"]] = record["encode_s"]
                        if record["text_tokens"] in baseline:
                            record["ratio"] = record["encode_s"] / baseline[record["text_tokens"]]
                    records.add(record | {"round": round_number})
    records.finish(table)


if __name__ == "__main__":
    main()
