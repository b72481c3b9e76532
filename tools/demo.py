"""Draws the same prompts with the small FLUX at 16-bit, NF4, FP4 and int8 in a real ComfyUI, side by side.

Saves every picture and one contact sheet in output/demo/, and prints their paths last.
"""

import argparse
import sys
from pathlib import Path

from comfy_client import ComfyClient, Finished, PromptFailed, PromptRejected
from comfy_host import REPOSITORY, ComfyHost, HostError, stop_on_signals
from contact_sheet import Column, contact_sheet
from tiny_workflow import MODELS, text_to_image
from tqdm import tqdm

PRECISIONS = {"16-bit": "none", "NF4": "nf4", "FP4": "fp4", "int8": "int8"}
PROMPTS = [
    "a red circle",
    "a blue square",
    "a green triangle",
    "a yellow star",
]
SEED = 7
BAR = "{desc:>6} {percentage:3.0f}% |{bar:40}| {elapsed} elapsed, {remaining} left"
MIB = 1024**2


class MemoryNotReported(Exception):
    """A loader node did not say how many bytes its weights take."""


def draw_column(client: ComfyClient, title: str, precision: str, folder: Path, bar: tqdm) -> tuple[Column, list[Path]]:
    """Draw every prompt at one precision; return the sheet's column and the paths of the saved pictures."""
    pictures, paths, notes = [], [], ""
    bar.set_description(title)
    for number, prompt in enumerate(PROMPTS, 1):
        graph = text_to_image(prompt, SEED, precision=precision)
        before = bar.n

        def show(node_id: str, done: int, total: int, before: int = before) -> None:
            if node_id == "sampler":
                bar.update(before + done / total - bar.n)

        finished = client.run(graph, show)
        bar.update(before + 1 - bar.n)
        notes = notes or memory_notes(finished)
        path = folder / f"{number}_{title.lower().replace('-', '')}.png"
        path.write_bytes(finished.files[0])
        pictures += finished.images
        paths.append(path)
    return Column(title, notes, pictures), paths


def memory_notes(finished: Finished) -> str:
    """Return the bytes of the transformer's and the T5's weights, as their loader nodes reported them, in two lines."""
    lines = []
    for label, node_id in (("transformer", "transformer"), ("T5", "text_encoders")):
        report = finished.outputs.get(node_id, {}).get("quantflux")
        if not report or "bytes" not in report[0]:
            raise MemoryNotReported(
                f'the node "{node_id}" of workflows/api/tiny_flux_text_to_image.json reported no memory: its output in '
                f'the host\'s history has no "quantflux" entry with "bytes". Is another version of the pack loaded?'
            )
        lines.append(f"{label} {report[0]['bytes'] / MIB:.1f} MiB")
    return "\n".join(lines)


def draw_all(folder: Path) -> list[Path]:
    """Run the whole demo; return the paths of the pictures, the contact sheet last."""
    folder.mkdir(parents=True, exist_ok=True)
    print("starting ComfyUI …", flush=True)
    with ComfyHost(models=MODELS) as host:
        device = host.client.get("/system_stats")["devices"][0]["name"]
        print(f"drawing {len(PROMPTS)} prompts at {len(PRECISIONS)} precisions on {device}", flush=True)
        columns, paths = [], []
        # A log that is no terminal gets a line now and then instead of a moving bar.
        pause = 0.1 if sys.stderr.isatty() else 10
        with tqdm(total=len(PRECISIONS) * len(PROMPTS), bar_format=BAR, smoothing=0.02, mininterval=pause) as bar:
            for title, precision in PRECISIONS.items():
                column, saved = draw_column(host.client, title, precision, folder, bar)
                columns.append(column)
                paths += saved
    sheet = folder / "contact_sheet.png"
    contact_sheet(PROMPTS, columns).save(sheet)
    return [*paths, sheet]


def main() -> None:
    """Read the command line and run the demo."""
    stop_on_signals()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "output" / "demo", help="where the pictures go")
    try:
        paths = draw_all(parser.parse_args().output)
    except (HostError, PromptRejected, PromptFailed, MemoryNotReported, TimeoutError) as error:
        sys.exit(f"the demo stopped: {error}")
    except KeyboardInterrupt:
        sys.exit("the demo was interrupted")
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
