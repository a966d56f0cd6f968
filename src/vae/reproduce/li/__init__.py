"""Li 2021: ways to predict, what is measured, and the document as data."""

from vae.reproduce.li.document import LI
