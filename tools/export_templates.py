"""Makes the templates in workflows/, for the canvas, for programs (workflows/api/), and their thumbnails.

    python tools/export_templates.py                        all of them
    python tools/export_templates.py flux_dev_8bit …        these only
    python tools/export_templates.py --screenshots FOLDER   also pictures of the canvas, to look at
    python tools/export_templates.py --no-thumbnails        leaves the thumbnails as they are

The graphs are in template_graphs.py, where their nodes are in template_layouts.py, what is said about them in
template_notes.py. The host's own frontend lays out, writes and exports them, so they are what a user would have saved.
Thumbnails are made by running them on small models. Needs a ComfyUI, as `make setup` makes it, and a Chromium.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

from canvas import canvas
from comfy_host import REPOSITORY, ComfyHost, HostError
from playwright.sync_api import Page
from template_graphs import graphs
from template_layouts import LAYOUTS
from template_notes import DOWNLOADS, NOTES
from template_thumbnails import write_thumbnails
from tiny_workflow import MODELS, WORKFLOWS

TEMPLATES = REPOSITORY / "workflows"
BUILD = (Path(__file__).parent / "build_template.js").read_text()
SHOW_ALL = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"


def export(names: list[str], screenshots: Path | None = None) -> None:
    """Write these templates in both formats; also a picture of each one's canvas into the folder `screenshots`."""
    with ComfyHost(models=MODELS) as host, canvas(host, "QuantFluxLoadTransformer") as page:
        core = host.client.get("/system_stats")["system"]["comfyui_version"]
        known = host.client.get("/object_info")
        versions = {"quantflux": version("quantflux"), "comfy-core": core}
        for name, graph in graphs():
            if name not in names:
                continue
            workflow = _build(page, name, graph, versions, known)
            (TEMPLATES / f"{name}.json").write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n")
            (WORKFLOWS / f"{name}.json").write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n")
            if screenshots:
                screenshots.mkdir(parents=True, exist_ok=True)
                page.evaluate(SHOW_ALL)
                page.wait_for_timeout(1000)
                page.screenshot(path=screenshots / f"{name}.png")


def _build(page: Page, name: str, graph: dict, versions: dict[str, str], known: dict) -> dict:
    """The template as the frontend saves it. What it exports for the API has to be `graph`.

    `known` is the host's /object_info.
    """
    arguments = {"graph": graph, "groups": LAYOUTS[name], "note": NOTES[name], "versions": versions}
    built = json.loads(page.evaluate(BUILD, arguments | {"downloads": DOWNLOADS}))
    ids, exported = built["ids"], {}
    for number, node in built["output"].items():
        inputs = {
            key: [ids[value[0]], value[1]] if isinstance(value, list) else value
            for key, value in node["inputs"].items()
            # the text of Preview as Text is the canvas's own
            if any(key in inputs for inputs in known[node["class_type"]]["input"].values())
        }
        exported[ids[number]] = node | {"inputs": inputs}
    if exported != graph:
        raise HostError(f"{name}: the canvas exports another graph than it was given:\n{exported}\nnot\n{graph}")
    return built["workflow"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="templates to make; all, without any")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    parser.add_argument("--no-thumbnails", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NOTES):
        parser.error(f"there is no template {', '.join(sorted(unknown))}. There are {', '.join(NOTES)}.")
    names = options.names or list(NOTES)
    export(names, options.screenshots)
    if not options.no_thumbnails:
        write_thumbnails(names, TEMPLATES)


if __name__ == "__main__":
    try:
        main()
    except HostError as error:
        sys.exit(str(error))
