"""Makes the tables of docs/mixed_precision.md: plans against one precision for all, at the same bytes.

python tools/calibrate.py            # the costs that the plans go by
python tools/mixed_precision.py --velocity --pictures 200 --flux-dev
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

from comfy_host import ComfyHost, HostError
from prompt_accuracy import SEED, prompt_accuracy
from shape_scenes import prompts
from tiny_in_process import TRANSFORMER, conditionings, empty_latent, use_host
from tiny_workflow import MODELS

COSTS = TRANSFORMER.with_name(TRANSFORMER.name + ".costs.csv")
PROMPTS, STEPS, SIZE, GUIDANCE = 8, 4, 128, 3.5
UNIFORM: dict[str, dict[str, Any]] = {
    "nf4 double quant for all": {"double_quant": True},
    "nf4 blocksize 32 double quant for all": {"double_quant": True, "blocksize": 32},
    "nf4 for all": {},
    "nf4, the two most harmful layers at 16 bit": {"skip_modules": ("img_in", "final_layer.linear")},
    "nf4 blocksize 32 for all": {"blocksize": 32},
    "int8 for all": {"precision": "int8"},
}
GIB, MIB = 2**30, 2**20


def velocity_table() -> None:
    """Velocity errors of the small FLUX, on prompts and noise that the calibration has not seen."""
    import torch
    from quantflux.nodes.host.calibration import calls_along, velocity_on
    from quantflux.nodes.host.flux_model import load_flux_model
    from quantflux.quant_core.checkpoint import Checkpoint, open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.memory import planned_nbytes
    from quantflux.quant_core.mixed import read_costs
    from quantflux.quant_core.quality import relative_error
    from quantflux.quant_core.source import Source, flux_source

    calibrated = open_checkpoint(TRANSFORMER)

    def config(**fields: Any) -> QuantConfig:
        return QuantConfig(**({"precision": "nf4", "compute_dtype": torch.float32} | fields))

    costs = {layer: errors | {"16-bit": 0.0} for layer, errors in read_costs(COSTS).items()}

    def predicted(source: Source) -> str:
        errors = [costs[module].get(source.recipe(module).describe(), math.nan) for module in costs]
        total = math.sqrt(math.fsum(errors))
        return "not calibrated" if math.isnan(total) else f"{total:.4f}"

    with torch.inference_mode():
        model = load_flux_model(flux_source(calibrated, config(precision="none")))
        texts = [caption for caption, *_ in prompts(PROMPTS, SEED)]
        calls = calls_along(model, conditionings(texts, GUIDANCE), empty_latent(SIZE), STEPS, 1000)
        exact = velocity_on(model, calls)()

        def line(name: str, source: Source) -> None:
            error = relative_error(exact, velocity_on(load_flux_model(source), calls)())
            counts = ", ".join(f"{number} {label}" for label, number in source.precisions.items())
            nbytes = planned_nbytes(source) / MIB
            print(f"| {name} | {nbytes:.2f} | {error:.4f} | {predicted(source)} | {counts} |", flush=True)

        print("| | MiB | velocity error | predicted | layers |\n|---|---|---|---|---|")
        for name, fields in UNIFORM.items():
            source = flux_source(calibrated, config(**fields))
            line(name, source)
            budget = planned_nbytes(source) / GIB
            line("plan, calibrated", flux_source(calibrated, config(budget_gib=budget)))
            # the same file under a name that has no costs beside it
            alone = Checkpoint(f"{TRANSFORMER}.alone", calibrated.tensors)
            line("plan, not calibrated", flux_source(alone, config(budget_gib=budget)))


def picture_table(count: int) -> None:
    """Prompt accuracy at the bytes of uniform NF4."""
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.memory import planned_nbytes
    from quantflux.quant_core.source import flux_source

    auto = f"auto:{planned_nbytes(flux_source(open_checkpoint(TRANSFORMER), QuantConfig('nf4'))) / GIB!r}"
    with_costs = MODELS | {"diffusion_models": [*MODELS["diffusion_models"], COSTS]}
    # T5 at 16 bit, so that only the transformer differs
    rows = {
        "nf4 for all": (MODELS, {"precision": "nf4"}),
        "plan, calibrated": (with_costs, {"precision": "nf4", "skip_modules": auto}),
        "plan, not calibrated": (MODELS, {"precision": "nf4", "skip_modules": auto}),
        "16-bit": (MODELS, {}),
    }
    print("| transformer | right | |\n|---|---|---|")
    for name, (models, transformer) in rows.items():
        with ComfyHost(models=models) as host:
            right, _ = prompt_accuracy(host.client, count, precision="none", transformer=transformer)
        print(f"| {name} | {right} of {count} | {100 * right / count:.1f} % |", flush=True)


def flux_dev_table() -> None:
    """How well one kind's costs of FLUX.1-dev's blocks stand for another's."""
    from quantflux.quant_core.mixed.flux_dev import EIGHT_BIT_KIND, measured

    table = measured()
    target = [errors["Q4_K_S"] - errors[EIGHT_BIT_KIND] for errors in table.values()]
    print("| ranked by | rank correlation with Q4_K_S less Q8_0 |\n|---|---|")
    for kind in ("Q2_K", "Q3_K_S", "Q4_0", "Q4_1", "Q5_1", "Q5_K_S", "Q6_K"):
        less = [errors[kind] - errors[EIGHT_BIT_KIND] for errors in table.values()]
        print(f"| {kind} less {EIGHT_BIT_KIND} | {spearman(less, target):.3f} |")
    print(f"| {EIGHT_BIT_KIND} itself | {spearman([e[EIGHT_BIT_KIND] for e in table.values()], target):.3f} |")


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of values without ties."""

    def ranks(values: Sequence[float]) -> dict[int, int]:
        return {index: rank for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__))}

    ours, theirs, n = ranks(a), ranks(b), len(a)
    return 1 - 6 * sum((ours[i] - theirs[i]) ** 2 for i in range(n)) / (n * (n * n - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--velocity", action="store_true")
    parser.add_argument("--pictures", type=int, default=0, metavar="COUNT", help="pictures to draw for each row")
    parser.add_argument("--flux-dev", action="store_true")
    arguments = parser.parse_args()
    try:
        use_host()
        if arguments.velocity:
            velocity_table()
        if arguments.pictures:
            picture_table(arguments.pictures)
        if arguments.flux_dev:
            flux_dev_table()
    except HostError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
