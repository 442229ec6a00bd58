"""tfbp takes a Keras model from pretrained weights to a served SavedModel.

The public names load their modules when they are first used, so that `import tfbp` costs nothing.
"""

import importlib
import os

from tfbp.errors import UserError, mistake

__version__ = "0.1.0"

_MODULES = {
    "Splits": "tfbp.data.splits",
    "Examples": "tfbp.data.examples",
    "augmentation": "tfbp.data.augmentation",
    "image_folder": "tfbp.data.folders",
    "Vocabulary": "tfbp.data.vocabulary",
    "swap_head": "tfbp.modeling.heads",
    "add_lora": "tfbp.modeling.adapters",
    "Classification": "tfbp.tasks.classification",
    "Regression": "tfbp.tasks.regression",
    "LanguageModel": "tfbp.tasks.language",
    "Task": "tfbp.tasks.task",
    "Phase": "tfbp.training.phase",
    "check_gradients": "tfbp.gradients.check",
    "Finding": "tfbp.finding",
    "audit": "tfbp.auditing.audit",
    "Config": "tfbp.recipe",
    "field": "tfbp.recipe",
    "fit": "tfbp.driver",
    "plan": "tfbp.driver",
    "run": "tfbp.driver",
    "Run": "tfbp.running.run",
}
__all__ = ["UserError", "__version__", *_MODULES]


def check_environment() -> None:
    """Refuses settings under which TensorFlow would not get Keras 3 on its own engine.

    Raises:
        tfbp.UserError: `KERAS_BACKEND` or `TF_USE_LEGACY_KERAS` asks for something else.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise mistake("KERAS_BACKEND", "must be 'tensorflow', or not set", backend)
    legacy = os.environ.get("TF_USE_LEGACY_KERAS", "0")
    if legacy.lower() not in ("", "0", "false"):
        raise mistake("TF_USE_LEGACY_KERAS", "must be 0, or not set: tfbp needs Keras 3", legacy)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'tfbp' has no attribute {name!r}")
    check_environment()
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
