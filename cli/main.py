"""The command line: its arguments, and how its errors end it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from .errors import HostError, ServerGone, UsageError
from .extras import require_extra

EPILOG = """\
Arguments after -- go to the ComfyUI that is started: quantflux run workflow.json -- --lowvram
Exit status: 0; 1 the workflow failed (in some row); 2 an argument or file cannot be used; 130 interrupted."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    _ready_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:split])
    options.flags = arguments[split + 1 :]
    try:
        require_extra("run")
        from .run import run

        return run(options)
    except KeyboardInterrupt:
        print("quantflux: interrupted", file=sys.stderr)
        return 130
    except UsageError as error:
        status, message = 2, error
    except ServerGone as error:
        status, message = 1, f"{error}. To go on, see that it runs, and that --server is its address."
    except (HostError, OSError) as error:
        status, message = 1, error
    print(f"quantflux: {message}", file=sys.stderr)
    return status


def _ready_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell, as by 2>&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            # What its encoding lacks, in a title or a path, must not end a batch.
            stream.reconfigure(errors="backslashreplace")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quantflux", description="FLUX with bitsandbytes quantization in ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="run a workflow without the canvas",
        description="Runs a ComfyUI workflow, prints its reports and the paths of its pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("workflow", help="a workflow as the canvas saves it, or exported for the API")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="a value for an input; the node by id, or by title or class if only one has it; may be repeated",
    )
    run.add_argument("--prompts", metavar="FILE.csv", help="a run for each row; the header has keys of --set")
    run.add_argument("--output", metavar="DIR", default="output", help="where pictures are saved (%(default)s)")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="URL", help="a ComfyUI that runs, such as http://127.0.0.1:8188")
    where.add_argument("--ray", metavar="ADDRESS", help="spread the rows over a Ray cluster, a ComfyUI on each GPU")
    run.add_argument(
        "--comfyui",
        metavar="PATH",
        help="the ComfyUI to start (COMFYUI_PATH, or the one that this pack is installed in)",
    )
    run.add_argument("--log", type=Path, metavar="FILE", help="where the log of the ComfyUI that is started is kept")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="stop a run that takes longer (never)")
    run.add_argument("--quiet", action="store_true", help="no progress, on a terminal either")
    cluster = run.add_argument_group("on a Ray cluster")
    cluster.add_argument("--ray-hosts", type=int, metavar="N", help="how many ComfyUIs to start (one for each GPU)")
    cluster.add_argument("--ray-gpus", type=float, default=1, metavar="N", help="GPUs of each, or 0 (%(default)s)")
    cluster.add_argument("--ray-cpus", type=float, default=1, metavar="N", help="CPUs of each (%(default)s)")
    cluster.add_argument(
        "--retries", type=int, default=2, metavar="N", help="how often a failed row is tried elsewhere (%(default)s)"
    )
    return parser
