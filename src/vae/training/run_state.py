"""What a checkpoint of a run holds, said once."""

import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vae.algorithms import State
from vae.config import differences, plain
from vae.errors import CheckpointError, ConfigError
from vae.randomness import Streams
from vae.training import checkpoint
from vae.training.progress import Progress
from vae.training.settings import read_settings

PLACES = {"data.root", "data.path", "train.device"}  # they change no result
MAY_CHANGE = PLACES | {
    f"train.{key}" for key in ("epochs", "samples", "evaluate_every", "checkpoint_seconds", "tensorboard")
}


@dataclass
class RunState:
    """A run between two steps. Saved and restored, it gives the next step bit for bit."""

    about: dict[str, Any]  # which run it is: the values that do not change
    state: State
    streams: Streams
    batches: Any
    progress: Progress
    form: str | None = None  # of the gradient: plain, compiled or parallel; None until it is chosen

    # What a checkpoint holds besides tensors; what may be None may be missing.
    VALUES: ClassVar[dict[str, Any]] = {
        "config": dict,
        "data_shape": list,
        "data_sha256": str | None,
        "data_range": list | None,
        "columns": list | None,  # the names of the elements of a datum
        "classes": list | None,  # those of the labels
        "weights": dict | None,  # the checkpoint that the first weights are from
        "weights_only": bool | None,  # for use alone
        "threads": int,
        "form": str | None,
        "step": int,
        "optimizer": dict,
        "progress": dict,
    }

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and values of a checkpoint."""
        optimizer_tensors, optimizer = checkpoint.optimizer_state(self.state.optimizer)
        blocks = {
            "model": self.state.model.state_dict(),
            "optimizer": optimizer_tensors,
            "memory": self.state.memory,
            "streams": {**self.streams.state(), **self.batches.state()},
            "sums": self.progress.sums,
        }
        tensors = {f"{block}.{name}": tensor for block, of in blocks.items() for name, tensor in of.items()}
        progress = {f.name: getattr(self.progress, f.name) for f in fields(Progress) if f.name != "sums"}
        changing = {"form": self.form, "step": self.state.step, "optimizer": optimizer, "progress": progress}
        return tensors, {**self.about, **changing}

    def unpack(self, tensors: dict[str, Tensor], values: dict[str, Any], file: Path) -> None:
        """Become what a checkpoint holds. CheckpointError if it is of another run, or for use alone."""
        if values["weights_only"]:
            raise CheckpointError(
                f"{file}: holds weights alone, without the state of the training, so the run cannot be resumed; begin "
                f"another with its weights: train.py --config FILE --from {file.parents[1]}"
            )
        self.about["weights"] = values["weights"]
        checkpoint.load_model(self.state.model, tensors, file)
        check_same_run(file, values["config"], self.about["config"])
        if values["data_sha256"] != self.about["data_sha256"]:
            raise CheckpointError(f"{file}: the training data are not those that this run was trained on; restore them")
        if values["threads"] != self.about["threads"]:
            warnings.warn(
                f"the run was begun with {values['threads']} threads and continues with {self.about['threads']}: its "
                "sums round differently, so it will not end in the same bits",
                stacklevel=2,
            )
        blocks = {name: checkpoint.under(name, tensors) for name in ("optimizer", "memory", "streams", "sums")}
        device = self.streams.device
        with checkpoint.of_this_library(file):
            checkpoint.load_optimizer(self.state.optimizer, blocks["optimizer"], values["optimizer"], file)
            self.state.memory = {name: tensor.to(device) for name, tensor in blocks["memory"].items()}
            self.state.step, self.form = values["step"], values["form"]
            self.streams.restore(blocks["streams"], self.state.step)
            self.batches.restore(blocks["streams"])
            sums = {name: tensor.to(device) for name, tensor in blocks["sums"].items()}
            self.progress = Progress(**values["progress"], sums=sums)


def check_same_run(file: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """CheckpointError if a checkpoint was written under another config than that of its directory."""
    changed = [key for key in differences(_filled_in(theirs), _filled_in(ours)) if key not in MAY_CHANGE]
    if changed:
        raise CheckpointError(
            f"{file}: written under another config: {', '.join(changed)} differ from config.yaml, where only "
            f"{', '.join(sorted(MAY_CHANGE))} may; put the right file back"
        )


def _filled_in(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the defaults of settings that came after it was written; as it is if it cannot be read."""
    try:
        return plain(read_settings(config))
    except ConfigError:
        return config
