"""The programs in benchmarks/, and the host's own modules, in this process."""

import sys

from comfy_host import REPOSITORY, has_accelerator, host_root


def pytest_configure():
    # last, so that their short names hide nothing
    sys.path.append(str(REPOSITORY / "benchmarks"))
    sys.path.insert(0, str(host_root()))
    import comfy.cli_args

    # before anything imports comfy.model_management, which looks for a device at once
    comfy.cli_args.args.cpu = not has_accelerator()
