"""Floor 3: parts composed into models."""

from vae.models.vae import VAE, evaluating

__all__ = ["VAE", "evaluating"]
