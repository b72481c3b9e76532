"""The weights that a checkpoint holds, whatever they are stored as: 16 bit, fp8, 4-bit or 8-bit."""

from .contents import Contents, StoredTensor, read_contents

__all__ = ["Contents", "StoredTensor", "read_contents"]
