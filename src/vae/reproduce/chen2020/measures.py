"""What is measured on the models of Chen 2020, and on other ways to as few numbers per image."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.data import Split
from vae.distributions import Normal, kl_divergence
from vae.evaluation import evaluate_bound, posterior_codes
from vae.evaluation.base import mean_and_stderr
from vae.evaluation.representation import CLASSIFIERS, accuracy, nearest_neighbours, train_autoencoder
from vae.models import EM, factor_analysis, pca, probabilistic_pca
from vae.reproduce.document import Arrays, Made, Results
from vae.reproduce.pictures import as_bytes, sharpness
from vae.training.build import build

SHOWN = {"mnist": 30, "fashion_mnist": 30, "cifar10": 10}  # test images 0, 128, 256, ...: the first of each minibatch
GRID = np.linspace(-4, 4, 30)


def pixel_entropy(x: Tensor) -> Tensor:  # (N, ...) -> (N,)
    """-sum x log x + (1 - x) log(1 - x), nats: the least cross-entropy of grey levels x, that of x with itself."""
    return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).double().flatten(1).sum(1)


def measure(made: Made) -> tuple[Results, Arrays]:
    """Losses, rate and excess over the floor; how the codes separate; which reconstructions are wrong; the pictures."""
    model, (train, test) = made.run.model, _labelled(made)
    x, bound = test.images(), evaluate_bound(model, test, name="test")
    values = {
        "loss": -bound.elbo,
        "reconstruction": -bound.log_p_x_given_z,
        "rate": bound.kl,
        "floor": pixel_entropy(x),
        "excess": -bound.elbo - pixel_entropy(x),
        "reconstruction_excess": -bound.log_p_x_given_z - pixel_entropy(x),
    }
    sampled = posterior_codes(model, test, name="test", sampled=True)
    rebuilt = torch.cat([model.decode(z) for z in sampled.split(1000)])
    codes = [posterior_codes(model, split, name=name) for split, name in ((train, "train"), (test, "test"))]
    shown = torch.arange(0, len(test), 128)[: SHOWN[made.settings.data.name]]
    read = nearest_neighbours(train.images().flatten(1), _labels(train), rebuilt[shown].flatten(1))
    results: Results = {
        "test": {name: mean_and_stderr(of_data) for name, of_data in values.items()},
        "train": {name: [round(-line[key], 3) for line in made.curve] for name, key in CURVES.items()},
        "accuracy": _accuracies(_labels(train), codes[0], _labels(test), codes[1]),
        "silhouette": _silhouette(sampled, _labels(test)),
        "sharpness": (sharpness(rebuilt).mean() / sharpness(x).mean()).item(),
        "squared_error": mean_and_stderr((rebuilt - x).double().flatten(1).square().sum(1)),
        "wrong": int((read != _labels(test)[shown]).sum()),
        "wrong_places": shown[read != _labels(test)[shown]].tolist(),
        "active_units": bound.active_units,
    }
    arrays: Arrays = {}
    if model.latent_dim in (2, 20, 256) and made.settings.modifiers.beta == 1:  # its plane is plotted
        points = sampled if model.latent_dim == 2 else tsne_of_2020(sampled, made.seed)
        results["silhouette_of_points"] = _silhouette(points, _labels(test))
        arrays |= {"points": points.numpy().astype(np.float16), "labels": _labels(test).numpy().astype(np.uint8)}
        arrays |= {"originals": as_bytes(x[shown]), "reconstructions": as_bytes(rebuilt[shown])}
    if model.latent_dim == 2:
        z = torch.from_numpy(np.stack(np.meshgrid(GRID, GRID[::-1]), -1).reshape(-1, 2))  # z_2 falls from the top
        arrays["manifold"] = as_bytes(model.decode(z))
    elif model.latent_dim == 20:
        arrays["traversals"] = as_bytes(model.decode(traversals(codes[1], bound.kl_per_dimension)))
    return results, arrays if made.pictures else {}


def _labelled(made: Made) -> tuple[Split, Split]:
    """The training and the test split, or the first 1,000 of each."""
    limit = 1000 if made.quick else None
    train, test = (made.data.evaluation_split(name).first(limit) for name in ("train", "test"))
    return train, test


def _labels(split: Split) -> Tensor:  # (N,)
    assert split.y is not None, "these data have labels"
    return split.y


CURVES = {"loss": "elbo", "reconstruction": "log_p_x_given_z"}  # of the training, by keys of the metrics


def _accuracies(labels: Tensor, codes: Tensor, other_labels: Tensor, others: Tensor) -> dict[str, dict[str, float]]:
    """By classifier: the share of test labels that it finds from the codes, fitted to those of the training data."""
    scores = {name: accuracy(fit(codes, labels, others), other_labels) for name, fit in CLASSIFIERS.items()}
    return {name: {"mean": score["accuracy"], "stderr": score["stderr"]} for name, score in scores.items()}


def _silhouette(points: Tensor, labels: Tensor) -> float:
    """How well the classes separate, from -1 to 1 (Rousseeuw 1987)."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points.numpy(), labels.numpy()))


def tsne_of_2020(z: Tensor, seed: int) -> Tensor:  # (N, J) -> (N, 2)
    """t-SNE with the defaults that scikit-learn had in 2020, and the thesis' perplexity of 50."""
    from sklearn.manifold import TSNE

    fitted = TSNE(perplexity=50, init="random", learning_rate=200.0, random_state=seed).fit_transform(z.numpy())
    return torch.from_numpy(fitted)


def traversals(codes: Tensor, kl: Tensor | None) -> Tensor:  # (N, J) -> (8 * 10, J)
    """The first code, with each of the eight latents of largest KL in turn moved from -3 to 3 in ten steps."""
    assert kl is not None, "the KL is a sum over latents"
    z = codes[:1].repeat(80, 1)
    for row, latent in enumerate(kl.argsort(descending=True)[:8].tolist()):
        z[10 * row : 10 * row + 10, latent] = torch.linspace(-3, 3, 10)
    return z


def baselines(made: Made) -> tuple[Results, Arrays]:
    """Other ways to d numbers per image: squared error of the reconstructions, and classifiers on the codes."""
    settings, (train, test) = made.settings, _labelled(made)
    d = settings.model.latent_dim  # type: ignore[union-attr]
    x, others, epochs = train.images().flatten(1), test.images().flatten(1), 1 if made.quick else 20
    flat = [f"model.{part}={{name: mlp, hidden: []}}" for part in ("encoder", "decoder")]
    models = {
        "auto-encoder": build(settings),
        "linear auto-encoder": build(settings, [*flat, "model.likelihood={name: gaussian, variance: fixed}"]),
    }
    results: Results = {}
    for name, model in models.items():
        train_autoencoder(model, train, epochs=epochs, seed=made.seed)
        codes, other_codes = posterior_codes(model, train, name="train"), posterior_codes(model, test, name="test")
        rebuilt = torch.cat([model.decode(z).flatten(1) for z in other_codes.split(1000)])
        results[name] = _baseline(train, codes, test, other_codes, rebuilt - others)
    for name, fit in LINEAR.items():
        fitted = fit(x, d)
        codes, other_codes = fitted.transform(x).float(), fitted.transform(others).float()
        results[name] = _baseline(train, codes, test, other_codes, fitted.reconstruct(others) - others)
    return results, {}


LINEAR: dict[str, Callable[[Tensor, int], Any]] = {
    "PCA": pca,
    "probabilistic PCA": probabilistic_pca,
    # EM until a step gains less than .001 nats: its default takes an hour on CIFAR-10, and changes .0002 on MNIST.
    "factor analysis": partial(factor_analysis, em=EM(tolerance=1e-3)),
}


def _baseline(train: Split, codes: Tensor, test: Split, others: Tensor, error: Tensor) -> Results:
    squared_error = mean_and_stderr(error.double().square().sum(1))
    return {"squared_error": squared_error, "accuracy": _accuracies(_labels(train), codes, _labels(test), others)}


def pixels(made: Made) -> tuple[Results, Arrays]:
    """Classifiers on the raw pixels."""
    train, test = _labelled(made)
    x, others = train.images().flatten(1), test.images().flatten(1)
    return {"accuracy": _accuracies(_labels(train), x, _labels(test), others)}, {}


def identities(made: Made) -> tuple[Results, Arrays]:
    """The identities of chapter 3 in float64: the largest error of each on random Gaussians."""
    generator = torch.Generator().manual_seed(made.seed)
    mean, log_std, at_z = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    q, p = Normal(mean, log_std), Normal(torch.zeros(5).double(), torch.zeros(5).double())
    variance = (2 * log_std).exp()
    diagonal = -0.5 * (1 + 2 * log_std - mean**2 - variance)
    dense = torch.distributions.MultivariateNormal(mean, torch.diag_embed(variance))
    standard = torch.distributions.MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double())
    eps = (at_z - mean) / log_std.exp()
    errors = (
        kl_divergence(q, p) - diagonal,
        torch.distributions.kl_divergence(dense, standard) - diagonal.sum(1),
        q.log_prob(at_z) - (p.log_prob(eps) - log_std),
    )
    return {"errors": {name: error.abs().max().item() for name, error in zip(IDENTITIES, errors, strict=True)}}, {}


IDENTITIES = (
    "the KL of a diagonal Gaussian (section 3.5)",
    "the KL of two Gaussians (section 3.5)",
    "log q(z) = log p(eps) - sum log sigma (section 3.6)",
)
