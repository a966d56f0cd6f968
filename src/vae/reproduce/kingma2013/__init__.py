"""Kingma & Welling 2013: what is measured, its figures, and the document as data."""

from vae.reproduce.kingma2013.document import KINGMA2013
