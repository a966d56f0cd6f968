"""Floor 7: a trained VAE as one HTML page that encodes and decodes in the browser."""

from vae.explorer.page import explorer_page
