"""Floor 7: pictures of arrays. Each function turns numbers into a matplotlib figure; `save` writes PNG and PDF."""

from vae.figures.codes import codes, tsne
from vae.figures.curves import curves
from vae.figures.images import in_rows, manifold, reconstructions, samples
from vae.figures.style import save
from vae.figures.sweep import sweep
