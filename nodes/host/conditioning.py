"""What conditions a picture, kept where it is sampled.

The host copies it there anew in each step, and with megabytes of it from memory that is not pinned CUDA waits until the
card is done with what was issued before: the card then idles until the next step has been issued. On an H200 that copy
took 66 to 92 ms of a step (2026-11-30).
"""

from __future__ import annotations

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP

KEY = "quantflux.conditioning"


def keep_conditioning(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Have ``patcher`` copy it once a sampling."""
    forget_conditioning(patcher)
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _calc_cond_batch)


def forget_conditioning(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Leave it to the host again."""
    patcher.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)


def _calc_cond_batch(executor, model, conds, x, *args, **kwargs):
    for condition in (one for several in conds for one in several or ()):
        # the sampling's own table, of entries that may be others', too
        table = condition.get("model_conds", {})
        for name, entry in table.items():
            kept = _on(getattr(entry, "cond", None), x.device)
            if kept is not None:
                table[name] = entry._copy_with(kept)
    return executor(model, conds, x, *args, **kwargs)


def _on(value, device: torch.device):
    """A tensor, or a list of them, on ``device``; None where nothing has to be copied."""
    if isinstance(value, torch.Tensor):
        return None if value.device == device else value.to(device)
    if isinstance(value, list) and all(isinstance(one, torch.Tensor) for one in value):
        return None if all(one.device == device for one in value) else [one.to(device) for one in value]
    return None
