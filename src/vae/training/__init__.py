"""Floor 6: from settings to a trained run on disk, and back."""

from vae.training.loading import load
from vae.training.run import Run, fit
from vae.training.settings import Settings, read_settings
