"""Chen 2020: what is measured, its figures, and the document as data."""

from vae.reproduce.chen2020.document import CHEN2020
