"""What conditions a picture is copied to the card once a sampling, and changes nothing."""

import comfy.conds
import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from host_models import stock_flux
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host import conditioning
from quantflux.nodes.host.conditioning import KEY, forget_conditioning, keep_conditioning
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.source import flux_source
from quantize_node import NF4, quantize_model
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
COPIES = torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.to


def packed_flux(flux_file):
    return load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("nf4")))


def wrappers(patcher) -> list:
    return patcher.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY)


def condition() -> list:
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(1, 64, generator=generator)
    return [[torch.randn(1, 16, 128, generator=generator), {"pooled_output": pooled, "guidance": 3.5}]]


class CopiesFromMemory(TorchDispatchMode):
    """Counts operations that make a tensor on another device of one in main memory."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in COPIES and result.device == META:
            self.count += any(isinstance(one, torch.Tensor) and one.device != META for one in args)
        return result


@pytest.fixture
def copies_in_steps(flux_file, monkeypatch):
    """How often each of three steps copies, by the host's own functions, on a device without arithmetic."""
    free = 2**40
    monkeypatch.setattr(
        comfy.model_management,
        "get_free_memory",
        lambda device=None, torch_too=False: (free, free) if torch_too else free,
    )

    def count(change) -> list[int]:
        patcher = stock_flux(flux_file)
        change(patcher)
        model = patcher.model.to(META)
        model.current_patcher = patcher
        x = torch.zeros(1, 16, 8, 8, device=META)
        conds = {"positive": comfy.sampler_helpers.convert_cond(condition())}
        conds = comfy.samplers.process_conds(model, x, conds, META, latent_image=x, denoise_mask=None, seed=0)
        options = {"transformer_options": {"wrappers": patcher.wrappers}}
        found = []
        for _ in range(3):
            with CopiesFromMemory() as copies:
                comfy.samplers.calc_cond_batch(model, [conds["positive"], None], x, torch.ones(1, device=META), options)
            found.append(copies.count)
        return found

    return count


def test_the_host_copies_in_each_step_and_with_ours_in_the_first_alone(copies_in_steps):
    assert copies_in_steps(lambda patcher: None) == [3, 3, 3]
    assert copies_in_steps(keep_conditioning) == [3, 0, 0]


def test_entries_are_replaced_and_what_others_hold_stays():
    first, several = torch.ones(1, 4), [torch.ones(2), torch.ones(3)]
    entries = {
        "c_crossattn": comfy.conds.CONDCrossAttn(first),
        "ref_latents": comfy.conds.CONDList(several),
        "constant": comfy.conds.CONDConstant(3),
        "none": comfy.conds.CONDConstant(None),
    }
    table = dict(entries)
    conds = [[{"model_conds": table}, {"area": None}], None]
    seen = []
    x = torch.zeros(1, device=META)
    for _ in range(2):
        result = conditioning._calc_cond_batch(
            lambda *args: seen.append(args) or "predicted", "model", conds, x, "t", {}
        )
        assert result == "predicted" and seen[-1] == ("model", conds, x, "t", {})
        kept = table["c_crossattn"], table["ref_latents"]
    assert kept[0].cond.device == META and type(kept[0]) is comfy.conds.CONDCrossAttn
    assert [one.device for one in kept[1].cond] == [META] * 2 and type(kept[1]) is comfy.conds.CONDList
    assert kept == (table["c_crossattn"], table["ref_latents"])
    assert table["constant"] is entries["constant"] and table["none"] is entries["none"]
    assert entries["c_crossattn"].cond is first and entries["ref_latents"].cond is several


def test_packed_models_and_their_clones_keep_it_and_dequantized_ones_do_not(flux_file):
    packed = packed_flux(flux_file)
    assert len(wrappers(packed)) == len(wrappers(packed.clone())) == 1
    (plain,) = QuantFluxDequantize.execute("auto", model=packed).args[:1]
    assert not wrappers(plain) and len(wrappers(packed)) == 1
    stock = stock_flux(flux_file)
    quantized = quantize_model(stock, NF4)
    assert len(wrappers(quantized)) == 1 and not wrappers(stock)
    assert len(wrappers(quantize_model(quantized, NF4))) == 1


def test_a_picture_is_the_same_with_it(flux_file):
    packed = packed_flux(flux_file)
    latent = torch.zeros(1, 16, 8, 8)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))

    def sample():
        return comfy.sample.sample(
            packed, noise, 3, 1.0, "euler", "simple", condition(), condition(), latent, disable_pbar=True, seed=0
        )

    kept = sample()
    forget_conditioning(packed)
    assert torch.equal(kept, sample())
