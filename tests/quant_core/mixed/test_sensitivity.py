"""Sensitivity, on a model small enough to be written out."""

import pytest
import torch
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize, is_packed, nbytes, quantize
from quantflux.quant_core.mixed import candidates, ranked, sensitivity


class TwoLayers:
    """y = b(relu(a(x))) and nothing else; counts its evaluations."""

    def __init__(self, scale: float = 1.0):
        generator = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(64, 64, generator=generator) for name in "ab"}
        self.weights["b"] *= scale
        self.original = dict(self.weights)
        self.x = torch.randn(32, 64, generator=generator)
        self.evaluations = 0

    def put(self, name, weight):
        self.weights[name] = weight

    def velocity(self):
        self.evaluations += 1
        a, b = (dequantize(self.weights[name], torch.float32) for name in "ab")
        return torch.relu(self.x @ a.T) @ b.T


def test_each_cost_is_the_squared_relative_error_with_that_layer_alone_packed():
    model = TwoLayers()
    recipes = candidates(QuantConfig("nf4"))
    costs = sensitivity(model.velocity, dict(model.weights), model.put, recipes)
    assert [(c.layer, c.recipe) for c in costs] == [(layer, recipe) for layer in "ab" for recipe in recipes]
    reference = model.velocity()
    for cost in costs:
        packed = quantize(model.original[cost.layer], cost.recipe)
        model.put(cost.layer, packed)
        difference = model.velocity() - reference
        model.put(cost.layer, model.original[cost.layer])
        expected = difference.square().sum() / reference.square().sum()
        assert cost.squared_error == pytest.approx(expected.item(), rel=1e-5)
        assert cost.nbytes == nbytes(packed)
    assert all((c.squared_error == 0) == (c.recipe.precision == "none") for c in costs)
    assert [c.squared_error for c in ranked(costs)] == sorted((c.squared_error for c in costs), reverse=True)


def test_every_layer_has_its_own_weight_again_at_the_end_and_when_it_is_cancelled():
    model = TwoLayers()
    progress = []
    sensitivity(model.velocity, dict(model.weights), model.put, [QuantConfig("nf4"), QuantConfig("none")],
                lambda *call: progress.append(call))  # fmt: skip
    assert all(model.weights[name] is model.original[name] for name in "ab")
    assert progress == [(1, 2), (2, 2)] and model.evaluations == 3

    def cancel(done, total):
        assert is_packed(model.weights["a"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(model.velocity, dict(model.weights), model.put, [QuantConfig("nf4")], cancel)
    assert all(model.weights[name] is model.original[name] for name in "ab")
