"""The experiments of Kingma & Welling 2013: what is trained, with which settings."""

from collections.abc import Iterator
from typing import Any

from vae.reproduce.document import Experiment
from vae.reproduce.kingma2013.figures import AT_0_02, BY_256, PRELOADED, SIZES, WORDS
from vae.reproduce.kingma2013.measures import bounds, marginal, search, with_appendix_d

BOTH, ALL = ("aevb", "wake_sleep"), tuple(WORDS)
SEVERAL = (0, 1, 2)
CONFIGS = {"mnist": "kingma2013_mnist_d20", "frey": "frey_face_d2"}
# The step size of Adagrad, found by the search on the named experiment; that of 20 latents on MNIST, and of 10 on Frey
# faces, is taken for all sizes. With 3 latents, the search would have found another.
STEPS = {
    "mnist_20_aevb": 0.02, "mnist_20_wake_sleep": 0.01, "frey_10_aevb": 0.01, "frey_10_wake_sleep": 0.01,
    "n1000_aevb": 0.1, "n1000_wake_sleep": 0.02, "n1000_mcem": 0.1,
    "n50000_aevb": 0.1, "n50000_wake_sleep": 0.02, "n50000_mcem": 0.1, "mnist_3_aevb": 0.02,
}  # fmt: skip
# Figure 2 as it may have been run too: at another of the paper's steps; with Adagrad's accumulators begun at 0.01, and
# by the squared gradients of ten minibatches, as in the first code of others; on digits over 256, as in its file.
READINGS = {"{}_{}_{}_step_{}{}".format(*reading): reading for reading in (
    ("mnist", 3, "aevb", 0.1, ""), ("mnist", 20, "aevb", 0.01, ""), ("mnist", 20, "wake_sleep", 0.02, ""),
    ("frey", 10, "aevb", 0.02, ""), ("frey", 10, "wake_sleep", 0.02, ""), ("frey", 10, "wake_sleep", 0.02, PRELOADED),
    *(("mnist", d, algorithm, 0.02, PRELOADED + scale)
      for scale in ("", BY_256) for d in SIZES["mnist"] for algorithm in BOTH),
)}  # fmt: skip
# Figure 3, and with 1,000 digits also over 256, with 50,000 at another of the paper's steps.
FIGURE_3 = {"n{}_{}{}".format(*run): run for run in (
    *((n, algorithm, how) for n, how in ((1000, ""), (50000, ""), (1000, BY_256)) for algorithm in ALL),
    (50000, "aevb", AT_0_02),
)}  # fmt: skip
DECAY = {"mnist": 0.002, "frey": 1 / 3}  # M / N
OVER_256 = {"data.pixels": "grey_256"}


def _adagrad(rate: float, weight_decay: float, **others: float) -> dict[str, Any]:
    """Adagrad with the prior N(0, I) of all parameters, as weight decay M / N of a sum over the minibatch."""
    return {"train.optimizer": {"name": "adagrad", "lr": rate, "weight_decay": weight_decay, **others}}


def of_mnist(d: int, algorithm: str, name: str = "", **changes: Any) -> Experiment:
    """A run on MNIST as in figure 2."""
    name = name or f"mnist_{d}_{algorithm}"
    step = _adagrad(STEPS.get(f"mnist_20_{algorithm}", 0.02), DECAY["mnist"])
    settings = {"model.latent_dim": d, "train.algorithm": algorithm, **step, **changes}
    measure = with_appendix_d if name == f"mnist_{d}_aevb" and d <= 20 else bounds
    alone = BY_256 in name or ("train.optimizer" in changes and "train.schedule" not in changes)
    seeds = SEVERAL if d in (3, 20) and not alone else (0,)
    return Experiment(name, measure, CONFIGS["mnist"], settings, seeds, settings.get("train.samples", 1e7) / 5e5)


def of_frey(d: int, algorithm: str, name: str = "", **changes: Any) -> Experiment:
    """A run on Frey faces as in figure 2."""
    name = name or f"frey_{d}_{algorithm}"
    settings = {"model.latent_dim": d, "train.algorithm": algorithm, "train.evaluate_every": 200}
    settings |= {**_adagrad(STEPS[f"frey_10_{algorithm}"], DECAY["frey"]), **changes}
    return Experiment(name, bounds, CONFIGS["frey"], settings, seeds=(0,), minutes=10.0)


def of_figure_3(n: int, algorithm: str, how: str) -> Experiment:
    """A run on N digits with 100 hidden units and 3 latents; MCEM counts 15 samples a datum a sweep."""
    batch, samples = (n, 4_000_000) if algorithm == "mcem" else (100, 60_000_000)
    settings = {
        "data.train_size": n, "model.latent_dim": 3, "model.encoder.hidden": [100], "model.decoder.hidden": [100],
        "train.algorithm": algorithm, "train.batch_size": batch, "train.samples": samples,
        "train.evaluate_every": samples // n // 10, "train.checkpoint_seconds": 60,
        **_adagrad(0.02 if how == AT_0_02 else STEPS[f"n{n}_{algorithm}"], batch / n),
        **(OVER_256 if how == BY_256 else {}),
    }  # fmt: skip
    seeds = SEVERAL if n == 1000 and not how else (0,)
    return Experiment(f"n{n}_{algorithm}{how}", marginal, CONFIGS["mnist"], settings, seeds, 45.0, trained=False)


def _experiments() -> Iterator[Experiment]:
    makers = {"mnist": of_mnist, "frey": of_frey}
    made = [of_figure_3(*run) for run in FIGURE_3.values()]
    made += [makers[data](d, algorithm) for data, sizes in SIZES.items() for d in sizes for algorithm in BOTH]
    yield from made
    yield of_mnist(2, "aevb")
    yield of_frey(10, "aevb", "frey_10_aevb_block", **{"data.split": "block"})
    for name, (data, d, algorithm, rate, start) in READINGS.items():
        changes = _adagrad(rate, DECAY[data], initial_accumulator_value=0.01 if start else 0.0)
        changes |= {"train.schedule": {"name": "delayed", "epochs": 10 * DECAY[data]}} if start else {}
        changes |= OVER_256 if BY_256 in start else {}
        yield makers[data](d, algorithm, name, **changes)
    shorter = {"train.samples": 2_000_000}
    yield of_mnist(20, "aevb", "mnist_20_l5", **shorter, **{"objective.num_samples": 5})
    for h in (250, 1000):
        hidden = {"model.encoder.hidden": [h], "model.decoder.hidden": [h]}
        yield of_mnist(20, "aevb", f"mnist_20_h{h}", **shorter, **hidden)
    few = {"data.train_size": 1000, "train.evaluate_every": 250}
    yield of_mnist(20, "aevb", "few_map", **few, **_adagrad(0.02, 0.1))
    yield of_mnist(20, "full_vb", "few_full_vb", **few, **_adagrad(0.02, 0.0))  # its bound has the prior
    for name in STEPS:
        found = next(experiment for experiment in made if experiment.name == name)
        yield Experiment(f"search_{name}", search, found.config, found.settings, (0,), minutes=3.0, trained=False)


EXPERIMENTS = tuple(_experiments())
