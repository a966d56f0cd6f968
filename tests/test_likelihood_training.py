"""A VAE learns under each likelihood that is neither Bernoulli nor Gaussian: data in, bound up, pictures or counts out."""

import numpy as np
import pytest
import scipy.stats
import torch

import vae
from vae.distributions import sum_from
from vae.likelihoods import LIKELIHOODS

DIGITS = {"name": "digits", "train_size": 1000}


def counts(path, n=600, J=2, D=24, r=3.0, seed=0):
    """Counts with log means linear in J latents, saved; and log p(x|z) of them at the latents they were made from."""
    rng = np.random.default_rng(seed)
    log_mean = 1 + rng.standard_normal((n, J)) @ (0.4 * rng.standard_normal((J, D)))
    p = r / (r + np.exp(log_mean))
    x = rng.negative_binomial(r, p)
    np.savez(path, x=x)
    return scipy.stats.nbinom(r, p).logpmf(x).sum(1).mean()


def dequantised(path):
    """Digits spread over the width of their levels: a pixel that is 0 in all of them has no largest density."""
    x = vae.load_data(**DIGITS).train.x.numpy()
    np.savez(path, x=(x + np.random.default_rng(0).random(x.shape)) / 17)
    return np.inf


def best_without_latents(likelihood, x):
    """The largest mean log-likelihood of a model that gives every datum the same distribution."""
    outputs = torch.zeros(1, 1, *likelihood.output_shape, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs, *likelihood.parameters()], max_iter=60, line_search_fn="strong_wolfe")

    def negative():
        optimizer.zero_grad()
        value = -sum_from(likelihood(outputs).log_prob(x), 2).mean()
        value.backward()
        return value

    optimizer.step(negative)
    return -negative().item()


# name -> (data, or what writes them and gives an upper limit of their bound; options of the likelihood; epochs)
CASES = {
    "continuous_bernoulli": (dequantised, {}, 10),
    "discretized_logistic": ({**DIGITS, "pixels": "levels"}, {"levels": 17}, 10),
    "categorical": ({**DIGITS, "pixels": "levels"}, {"levels": 17}, 15),
    "negative_binomial": (counts, {}, 40),
}


def test_every_likelihood_is_trained_somewhere():
    assert CASES.keys() == LIKELIHOODS.keys() - {"bernoulli", "grey_cross_entropy", "gaussian"}


@pytest.mark.parametrize("name", CASES)
def test_a_vae_learns_more_than_pixels_on_their_own(name, tmp_path):
    block, options, epochs = CASES[name]
    limit = 0.0  # of a mass function
    if callable(block):
        limit = block(tmp_path / "own.npz")
        block = {"name": "npz", "path": str(tmp_path / "own.npz")}
    data = vae.load_data(**block)
    model = vae.build(
        {
            "data": block,
            "model": {
                "latent_dim": 4,
                "encoder": {"hidden": [64]},
                "decoder": {"hidden": [64]},
                "likelihood": {"name": name, **options},
            },
        }
    )
    run = vae.fit(
        model,
        data,
        out=tmp_path / "run",
        epochs=epochs,
        batch_size=50,
        optimizer={"name": "adam", "lr": 3e-3},
        verbose=False,
    )
    bounds = [line["elbo"] for line in run.history if line["split"] == "train"]
    alone = best_without_latents(LIKELIHOODS[name](data.shape, **options), data.train.images())
    assert alone + 1 < bounds[-1] < limit

    x = data.test.images()
    model = vae.load(tmp_path / "run")
    elbo = model.elbo(x)
    assert torch.isfinite(elbo).all()
    assert elbo.mean() > bounds[0]
    shown = {
        "reconstructed": model.reconstruct(x),
        "sampled": model.sample(200),
        "decoded": model.decode(torch.zeros(5, 4)),
    }
    for means in shown.values():
        assert means.shape[1:] == data.shape
        assert means.min() >= 0
    eye = torch.log1p if data.kind == "counts" else lambda x: x  # an expected count may be large, a grey level not
    if data.kind != "counts":
        assert max(means.max() for means in shown.values()) <= 1
    assert (eye(shown["sampled"]).mean() / eye(x).mean()).item() == pytest.approx(1, abs=0.3)
    assert (eye(shown["reconstructed"]) - eye(x)).square().mean() < 0.9 * (eye(x) - eye(x).mean(0)).square().mean()
