"""The host's log at its warning level: with our pack at work it says nothing that the host alone does not say."""

import re

from comfy_host import ComfyHost
from tiny_workflow import MODELS, text_to_image

QUIET = ("--verbose", "WARNING")
# bitsandbytes, as it is imported on a CPU with bfloat16 instructions, unless the package `kernels` is there
BITSANDBYTES = "Failed to load CPU gemm_4bit_forward from kernels-community"
SAMPLER_PROGRESS = re.compile(r"\d+%\|.*\|")


def log_lines(host):
    """The lines of a host's log; its own folder and the progress bars, which differ from run to run, are left out."""
    lines = host.log.replace(str(host.base), "BASE").replace("\r", "\n").splitlines()
    return [line.strip() for line in lines if line.strip() and not SAMPLER_PROGRESS.search(line)]


def test_no_warnings_from_our_code_or_because_of_it():
    with ComfyHost(extra_flags=QUIET, with_pack=False) as alone:
        alone.client.free()
    with ComfyHost(models=MODELS, extra_flags=QUIET) as host:
        for precision in ("none", "nf4", "fp4", "int8"):
            host.client.run(text_to_image("a red circle", precision=precision))
        host.client.run(text_to_image("a red circle", precision="nf4", double_quant=True))
        host.client.free()
        host.client.run(text_to_image("a red circle", seed=1))
    known = set(log_lines(alone))
    assert [line for line in log_lines(host) if line not in known and BITSANDBYTES not in line] == []
