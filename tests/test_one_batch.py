"""docs/one_batch.md names the files that a minibatch visits, in their order."""

import re
import sys
from pathlib import Path

import vae
from vae.training import read_settings
from vae.training.run import train

ROOT = Path(__file__).parent.parent
SOURCE = Path(vae.__file__).parent


def visited(settings):
    """The files of the library that are entered between the start of the loop and the first update."""
    files, tracing = {}, [False]

    def profile(frame, event, arg):
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(SOURCE)):
            return
        if frame.f_code.co_name == "run_to_the_end":
            tracing[0] = True
        if tracing[0]:
            files.setdefault(Path(name).relative_to(SOURCE).as_posix())
        if frame.f_code.co_name == "optimizer_step":
            tracing[0] = False
            sys.setprofile(None)

    sys.setprofile(profile)
    try:
        train(settings, None, verbose=False)
    finally:
        sys.setprofile(None)
    return list(files)


def test_the_page_names_the_files_of_a_step_in_order():
    page = (ROOT / "docs" / "one_batch.md").read_text()
    settings = read_settings(ROOT / "configs" / "digits_d2.yaml", ["train.epochs=1", "train.compile=never"])
    assert re.findall(r"^\d+\. `([\w/]+\.py)`", page, flags=re.MULTILINE) == visited(settings)
