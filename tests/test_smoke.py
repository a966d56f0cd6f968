import vae


def test_version():
    assert vae.__version__
