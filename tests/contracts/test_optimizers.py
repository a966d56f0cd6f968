"""Every row of OPTIMIZERS steps as torch's own class does, and every schedule is the function it says."""

import inspect

import pytest
import torch

from vae.algorithms import OPTIMIZERS, SCHEDULES
from vae.errors import ConfigError
from vae.schema import options_of
from vae.training import read_settings


def quadratic_run(optimizer_of, steps=20):
    parameter = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64))
    optimizer = optimizer_of([parameter])
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        (parameter.square() * torch.tensor([1.0, 5.0])).sum().backward()
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_equal_torchs(name):
    row = OPTIMIZERS[name]
    torch.testing.assert_close(quadratic_run(row), quadratic_run(row.cls), rtol=1e-12, atol=1e-12)


def test_the_table_holds_every_optimizer_of_torch_that_steps_on_a_gradient_alone():
    """LBFGS needs a closure, SparseAdam sparse gradients, Muon parameters that are all matrices."""
    others = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}
    torchs = {name for name, cls in vars(torch.optim).items() if inspect.isclass(cls)} - others
    assert {row.cls.__name__ for row in OPTIMIZERS.values()} == torchs


def test_adagrads_initial_accumulator_is_a_setting():
    settings = read_settings(
        {
            "data": {"name": "digits"},
            "model": {"latent_dim": 2},
            "train": {"optimizer": {"name": "adagrad", "initial_accumulator_value": 0.1}},
        }
    )
    assert settings.train.optimizer.options["initial_accumulator_value"] == 0.1
    group = OPTIMIZERS["adagrad"]([torch.nn.Parameter(torch.ones(2))], initial_accumulator_value=0.1)
    assert next(iter(group.state.values()))["sum"].tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_negative_learning_rate_is_refused(name):
    raw = {"data": {"name": "digits"}, "model": {"latent_dim": 2}, "train": {"optimizer": {"name": name, "lr": -1}}}
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lr: must be greater than 0"):
        read_settings(raw)


def test_options_are_torchs_keywords():
    assert {"lr", "betas", "eps", "weight_decay", "amsgrad"} <= options_of(OPTIMIZERS["adam"]).keys()
    assert not {"foreach", "fused", "capturable", "maximize", "params"} & options_of(OPTIMIZERS["adam"]).keys()


EXPECTED = {  # factors at epochs 0, 1.5, 5 and 10 of 10
    "constant": ({}, [1, 1, 1, 1]),
    "step": ({"every": 5, "gamma": 0.1}, [1, 1, 0.1, 0.01]),
    "exponential": ({"gamma": 0.5}, [1, 0.5, 0.5**5, 0.5**10]),
    "cosine": ({"final": 0.0}, [1, 0.9455032620941839, 0.5, 0]),
    "warm_up": ({"epochs": 3.0}, [1e-3, 0.5, 1, 1]),
    "delayed": ({"epochs": 1.5}, [0, 1, 1, 1]),
}


def test_every_schedule_has_an_oracle():
    assert EXPECTED.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    options, factors = EXPECTED[name]
    assert [SCHEDULES[name](epoch, 10, **options) for epoch in (0, 1.5, 5, 10)] == pytest.approx(factors)


def test_the_cosine_falls_from_the_whole_rate_to_its_final_share():
    assert [SCHEDULES["cosine"](epoch, 8, final=0.2) for epoch in (0, 4, 8)] == pytest.approx([1, 0.6, 0.2], abs=1e-15)


def test_delayed_adagrad_begins_with_the_squares_of_the_first_gradients():
    """Three gradients at a rate of 0 leave the weight, and make the first step half as long: g / sqrt(4 g^2)."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = OPTIMIZERS["adagrad"]([weight])
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 * SCHEDULES["delayed"](step / 100, 1, epochs=0.03)
        weight.grad = torch.tensor([30.0, -0.5], dtype=torch.float64)
        optimizer.step()
    assert weight.tolist() == pytest.approx([1 - 0.05, -2 + 0.05])
