import subprocess
import sys

import pytest

import tfbp


def test_every_public_name_is_there():
    for name in tfbp.__all__:
        assert getattr(tfbp, name) is not None
    assert set(tfbp.__all__) <= set(dir(tfbp))


def test_public_classes_and_functions_have_docstrings():
    for name in tfbp.__all__:
        if name != "__version__":
            assert getattr(tfbp, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tfbp.nothing


def test_the_import_and_a_recipes_config_load_no_tensorflow():
    program = "import sys, tfbp; tfbp.Config; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(
    ("variable", "value"), [("KERAS_BACKEND", "torch"), ("TF_USE_LEGACY_KERAS", "True")]
)
def test_another_keras_is_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(tfbp.UserError, match=f"`{variable}` must be"):
        tfbp.check_environment()


def test_the_keras_that_is_wanted_is_accepted(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    tfbp.check_environment()
