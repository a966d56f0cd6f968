"""The errors that a user can mend; each message is one sentence: what, where, how to mend it."""


class VaeError(Exception):
    """The base of all errors below; a command prints its message alone and exits with `status`."""

    status = 2


class ConfigError(VaeError):
    """A setting, or several (one line each), that the schema does not take."""


class DataError(VaeError):
    """A data file that is missing, truncated, altered, or not of the form that was asked for."""


class CheckpointError(VaeError):
    """A checkpoint or run directory that cannot be trusted, or that belongs to another model."""


class UsageError(VaeError):
    """A command-line argument, or a call, that asks for what is not there."""


class TrainingFailed(VaeError):
    """A bound that is not finite or explodes; the run's checkpoints stay as they were."""

    status = 1


class PosteriorCollapse(UserWarning):
    """No latent carries information about the data: the posterior has collapsed onto the prior."""


class Interrupted(KeyboardInterrupt):
    """Training was told to stop by a signal, after its state was saved; `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
