"""Makes locales/en/nodeDefs.json, the nodes' English texts for the canvas, from their schemas.

Translations have the same keys. Needs a ComfyUI, as `make setup` makes it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

from comfy_host import REPOSITORY, HostError, host_root

LOCALES = REPOSITORY / "locales"
FILE = "nodeDefs.json"
# vue-i18n's message syntax. Frontend 1.32.9 cannot make a node whose texts break it; 1.58.1 shows tooltips as they are
# written, escapes included. So texts with these characters are left out, and the canvas shows the schema's.
MESSAGE_SYNTAX = re.compile(r"[{}@|]")

Texts = dict[str, dict]


def node_texts() -> Texts:
    """Every text that the schemas of the nodes have, by the keys of the host's nodeDefs.json."""
    from quantflux.nodes import QuantFluxExtension

    classes = asyncio.run(QuantFluxExtension().get_node_list())
    return {schema.node_id: _texts(schema) for schema in (cls.GET_SCHEMA() for cls in classes)}


def _texts(schema) -> dict:
    texts = {"display_name": schema.display_name, "description": schema.description}
    texts["inputs"] = {one.id: {"name": one.display_name or one.id, "tooltip": one.tooltip} for one in schema.inputs}
    if schema.outputs:
        texts["outputs"] = {
            str(index): {"name": one.display_name or one.io_type, "tooltip": one.tooltip}
            for index, one in enumerate(schema.outputs)
        }
    return texts


def showable(texts: Texts) -> Texts:
    """`texts` without those that hold message syntax."""
    return {
        key: showable(text) if isinstance(text, dict) else text
        for key, text in texts.items()
        if isinstance(text, dict) or not MESSAGE_SYNTAX.search(text or "")
    }


def english() -> str:
    """The content of locales/en/nodeDefs.json."""
    return json.dumps(showable(node_texts()), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    try:
        sys.path.insert(0, str(host_root()))
    except HostError as error:
        sys.exit(str(error))
    import comfy.cli_args

    # before anything imports comfy.model_management, which looks for a device at once
    comfy.cli_args.args.cpu = True
    (LOCALES / "en" / FILE).write_text(english(), encoding="utf-8")
