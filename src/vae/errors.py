"""The errors that a user can fix; each message is one sentence: what is wrong, where, and how to fix it."""

import warnings


class VaeError(Exception):
    """The base of these errors; a command prints only the message and exits with `status`."""

    status = 2


class ConfigError(VaeError):
    """One or several invalid settings, one line each."""


class DataError(VaeError):
    """A data file that is missing, truncated, altered, or not in the requested form."""


class CheckpointError(VaeError):
    """A checkpoint or run directory that cannot be trusted, or that belongs to another model."""


class UsageError(VaeError):
    """An invalid command-line argument or call."""


class TrainingFailed(VaeError):
    """A bound that is not finite or explodes; the run's earlier checkpoints are kept."""

    status = 1


class DataWarning(UserWarning):
    """Data of which a part is left out, or which may not be what was meant."""


def tell(text: str) -> None:
    """Warn of data."""
    warnings.warn(text, DataWarning, stacklevel=3)


class PosteriorCollapse(UserWarning):
    """No latent carries information about the data: the posterior has collapsed onto the prior."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped training, and its state was saved; `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
