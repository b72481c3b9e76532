"""Runs ComfyUI with its canvas on localhost, with this pack and the small FLUX in place, for trying by hand."""

import argparse
import sys

from comfy_host import REPOSITORY, ComfyHost, HostError, stop_on_signals
from tiny_workflow import MODELS


def main() -> None:
    """Serve until interrupted."""
    stop_on_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8188)
    try:
        host = ComfyHost(REPOSITORY / "output" / "serve", MODELS, parser.parse_args().port, log_to_terminal=True)
        with host:
            print(f"\nthe canvas: {host.client.url}/?template=tiny_flux_text_to_image&source=quantflux")
            print(f"models, inputs and pictures: {host.base}\nCtrl-C stops it.", flush=True)
            sys.exit(host.wait())
    except HostError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass  # how this program is meant to end


if __name__ == "__main__":
    main()
