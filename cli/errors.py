"""What a user of the command line can mend."""

from __future__ import annotations


class UsageError(Exception):
    """An argument or a file that cannot be used; the message says which, why, and what can."""


class HostError(Exception):
    """There is no usable ComfyUI, or it did not start; the message says which, and what to do."""


class ServerGone(ConnectionError):
    """A ComfyUI that answered before, or should, does not."""
