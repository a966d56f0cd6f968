"""Floor 9: documents as tables of figures and numbers, each made again by one command."""

from vae.reproduce.chen2020 import CHEN2020
from vae.reproduce.estimators.document import ESTIMATORS
from vae.reproduce.kingma2013 import KINGMA2013
from vae.reproduce.laird import LAIRD
from vae.reproduce.li import LI
from vae.reproduce.slides import SLIDES
from vae.reproduce.wang2018 import WANG2018

DOCUMENTS = {document.name: document for document in (LAIRD, CHEN2020, LI, WANG2018, SLIDES, KINGMA2013, ESTIMATORS)}
