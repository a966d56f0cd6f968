"""The loops that are timed, each as a call that makes its next step: the library's, and one as tutorials write it."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from inputs import TORCHVISION, torchvision_images
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from vae import precision
from vae.algorithms import AEVB, OPTIMIZERS, State
from vae.data import Data, Split
from vae.models import VAE
from vae.ranks import Ranks, Stop
from vae.training import Settings
from vae.training.build import build_algorithm, build_model, choose_device
from vae.training.run import begin, plan_of, with_gradient
from vae.training.run_state import RunState
from vae.training.settings import ModifierSettings
from vae.training.trainer import Stepper

Step = Callable[[], None]

# ------------------------------------------------------------------------------------- the library's


def library_step(settings: Settings, data: Data) -> tuple[Step, RunState]:
    """The next step of training as a long run makes it, from stored bytes to updated parameters; and the run."""
    settings = replace(settings, train=replace(settings.train, epochs=10**9, samples=None))
    run, algorithm = begun(settings, data)
    algorithm = with_gradient(algorithm, run, settings, plan_of(settings), Stop())
    return next_step(algorithm, run, settings), run


def plain_step(settings: Settings, data: Data) -> tuple[Step, State]:
    """The step that is the specification (gather, noise, AEVB.step), and the state that it updates."""
    run, algorithm = begun(settings, data)
    return next_step(algorithm, run, settings), run.state


def begun(settings: Settings, data: Data) -> tuple[RunState, AEVB]:
    """A run before its first step, its weights drawn from train.seed, and the algorithm with the eager gradient."""
    return begin(settings, build_model(settings.model, data.shape, settings.train.seed), data, Ranks())


def next_step(algorithm: AEVB, run: RunState, settings: Settings) -> Step:
    """A call that makes the next step of a run, epoch after epoch."""
    dtype = precision.parameter_dtype(settings.train.precision)
    stepper = Stepper(algorithm, run.state, run.batches, run.streams, dtype)
    endless = (done for epoch in itertools.count() for done in stepper.epoch(epoch, 0))
    return lambda: next(endless) and None


# ------------------------------------------------------------------------------------- a tutorial's


def tutorial_step(settings: Settings, data: Data) -> tuple[Step, str]:
    """The next step of the loop, to be made under `true_float32`, and the data set that it loads.

    A DataLoader in this process that decodes image by image, eager networks, the optimizer as torch gives it, and
    `loss.item()` at each step.
    """
    train = settings.train
    device = choose_device(train.device)
    model = build_model(settings.model, data.shape, train.seed).to(device).train()
    options: dict[str, Any] = train.optimizer.options
    optimizer = OPTIMIZERS[train.optimizer.name].cls(model.parameters(), **options)
    images, name = torchvision_images(data.settings), f"torchvision's {TORCHVISION.get(data.name)}"
    if images is None:
        images, name = ImageByImage(data.train), "images decoded one by one"
    loader = DataLoader(images, batch_size=train.batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    loss_of = _loss(settings, model)

    def step() -> None:
        x = next(batches)[0].to(device)
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        loss.item()

    return step, name


@contextlib.contextmanager
def true_float32() -> Iterator[None]:
    """Multiply float32 matrices as PyTorch does unasked, whichever library is faster; it cannot stand within
    `matmul_precision`, which has one setting for the whole process."""
    restore = precision.set_products(precision.TRUE)
    try:
        yield
    finally:
        restore()


class ImageByImage(Dataset[tuple[Tensor, int]]):
    """A split, decoded as torchvision's data sets are: bytes, a PIL image, a tensor; what is no picture, as it is."""

    def __init__(self, split: Split) -> None:
        self.x, self.pictures = split.x, None
        if split.x.dtype == torch.uint8 and split.x.shape[1:-2] in ((1,), (3,)):
            levels = (split.x.float() * (255 / split.scale)).round().byte()
            self.pictures = levels.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()  # (N, H, W) or (N, H, W, 3)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.pictures is None:
            return self.x[i].float(), 0
        from torchvision.transforms.functional import to_tensor

        return to_tensor(Image.fromarray(self.pictures[i])), 0


def _loss(settings: Settings, model: VAE) -> Callable[[Tensor], Tensor]:
    """The negative bound: by the textbook's formulas where they are of this config, else by its own objective."""
    objective = build_algorithm(settings, 1, 1).objective

    def textbook(x: Tensor) -> Tensor:
        mean, log_variance = model.encoder(x).chunk(2, 1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        cross_entropy = binary_cross_entropy_with_logits(model.decoder(z).view_as(x), x, reduction="sum")
        return cross_entropy - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())

    def own(x: Tensor) -> Tensor:
        noises = objective.noises(model, len(x)).items()
        draws = {
            n: {"normal": torch.randn, "uniform": torch.rand}[k](shape, device=x.device) for n, (k, shape, _) in noises
        }
        return -objective(model, x, draws, {}, 0)[0].surrogate.sum()

    bound = textbook if _is_textbook(settings) else own
    return bound if settings.train.reduction == "sum" else lambda x: bound(x) / len(x)


def _is_textbook(settings: Settings) -> bool:
    """Whether the objective is a cross-entropy and the KL of a diagonal Gaussian, by one sample."""
    model, objective = settings.model, settings.objective
    return (
        model.likelihood is not None
        and model.likelihood.name in ("bernoulli", "grey_cross_entropy")
        and (model.posterior.name, model.prior.name) == ("diagonal_gaussian", "standard_normal")
        and (objective.name, objective.options["num_samples"]) == ("sgvb_b", 1)
        and settings.modifiers == ModifierSettings()
    )
