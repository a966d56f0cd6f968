"""Floor 9: documents as tables of figures and numbers, each made again by one command."""

from vae.reproduce.chen2020 import CHEN2020
from vae.reproduce.estimators.document import ESTIMATORS
from vae.reproduce.laird import LAIRD

DOCUMENTS = {document.name: document for document in (LAIRD, CHEN2020, ESTIMATORS)}
