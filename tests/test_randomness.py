"""Named streams: independent, reproducible, by place where they must be."""

import pytest
import torch

from tests.oracles import z_score
from vae.randomness import Noise, Streams, datum_noise, derive, permutation, seeded


def test_rows_do_not_depend_on_the_rows_before_them():
    whole = datum_noise("normal", 3, "test", range(50), (2, 5))
    some = datum_noise("normal", 3, "test", torch.tensor([49, 0, 7]), (2, 5))
    assert torch.equal(some, whole[[49, 0, 7]])


def test_streams_of_other_names_seeds_blocks_and_data_differ():
    base = datum_noise("normal", 0, "test", range(4), (6,))
    for other in (
        datum_noise("normal", 1, "test", range(4), (6,)),
        datum_noise("normal", 0, "train", range(4), (6,)),
        datum_noise("normal", 0, "test", range(4), (6,), block=1),
        datum_noise("normal", 0, "test", range(4, 8), (6,)),
    ):
        assert not (other == base).any()


def test_noise_is_standard_normal_and_uncorrelated_between_data_and_samples():
    """Six z-scores; false alarms at a rate of 6e-5 (|z| < 4.4), fixed seed."""
    noise = datum_noise("normal", 5, "moments", range(20_000), (3, 2))
    first, second = noise[:, 0, 0], noise[:, 1, 0]
    scores = [
        z_score(noise.flatten(), 0),
        z_score(noise.flatten().square(), 1),
        z_score(noise.flatten() ** 4, 3),
        z_score(first * second, 0),
        z_score(first[1:] * first[:-1], 0),
        z_score(noise[:, 0, 0] * noise[:, 0, 1], 0),
    ]
    assert max(map(abs, scores)) < 4.4


def test_uniform_noise_is_uniform():
    noise = datum_noise("uniform", 5, "moments", range(20_000), (3,)).flatten()
    assert noise.min() >= 0
    assert noise.max() < 1
    assert abs(z_score(noise, 0.5)) < 4.4


def test_training_noise_is_fresh_at_each_step_and_goes_on_after_a_restore():
    streams = Streams(0, torch.device("cpu"))
    noises = {"eps": Noise("normal", (3, 4, 2)), "u": Noise("uniform", (5,))}
    first = streams.draw(noises, torch.float64)
    state = streams.state()
    second = streams.draw(noises, torch.float64)
    assert not any((first[name] == second[name]).any() for name in noises)
    other = Streams(1, torch.device("cpu"))
    other.restore(state, 1)
    third = other.draw(noises, torch.float64)
    assert all(torch.equal(third[name], second[name]) for name in noises)


def test_an_epoch_is_a_new_permutation_of_all_data():
    first, second = permutation(0, 0, 101), permutation(0, 1, 101)
    assert torch.equal(first.sort().values, torch.arange(101))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(0, 0, 101))
    assert not torch.equal(first, permutation(1, 0, 101))


def test_the_streams_of_a_run_differ_pairwise():
    """Each orders 101 data: noise, pixels, what a user's modules draw from, and the data themselves."""
    streams = Streams(3, torch.device("cpu"))
    orders = [torch.randperm(101, generator=generator) for generator in (streams.noise, streams.pixels)]
    with seeded(3, "modules"):
        orders.append(torch.randperm(101))
    orders.append(permutation(3, 0, 101))
    assert len(torch.stack(orders).unique(dim=0)) == 4


def test_seeded_gives_the_default_generator_back():
    before = torch.get_rng_state()
    with seeded(0, "initialisation"):
        one = torch.randn(3)
    with seeded(0, "initialisation"):
        assert torch.equal(one, torch.randn(3))
    assert torch.equal(before, torch.get_rng_state())


def test_derived_seeds_do_not_collide_by_concatenation():
    assert derive(1, "a", 1) != derive(1, "a", 11)
    assert derive(1, 1, "a") != derive(11, "a")


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_no_data_is_no_noise(kind):
    assert datum_noise(kind, 0, "x", [], (3,)).shape == (0, 3)
