"""tfbp takes a Keras model from pretrained weights to a served SavedModel.

The public names load their modules when they are first used, so that `import tfbp` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from tfbp.errors import UserError, mistake
from tfbp.version import __version__

if TYPE_CHECKING:  # For type checkers and editors; a test holds it against the table below.
    from tfbp.auditing.audit import audit as audit
    from tfbp.data.augmentation import augmentation as augmentation
    from tfbp.data.catalog import load_data as load_data
    from tfbp.data.catalog import load_text as load_text
    from tfbp.data.examples import Examples as Examples
    from tfbp.data.folders import image_folder as image_folder
    from tfbp.data.splits import Splits as Splits
    from tfbp.data.vocabulary import Vocabulary as Vocabulary
    from tfbp.driver import fit as fit
    from tfbp.driver import plan as plan
    from tfbp.driver import run as run
    from tfbp.finding import Finding as Finding
    from tfbp.gradients.check import check_gradients as check_gradients
    from tfbp.modeling.adapters import add_lora as add_lora
    from tfbp.modeling.backbones import load_backbone as load_backbone
    from tfbp.modeling.backbones import load_weights as load_weights
    from tfbp.modeling.heads import swap_head as swap_head
    from tfbp.recipe import Config as Config
    from tfbp.running.run import Run as Run
    from tfbp.settings import Settings as Settings
    from tfbp.settings import field as field
    from tfbp.tasks.classification import Classification as Classification
    from tfbp.tasks.language import LanguageModel as LanguageModel
    from tfbp.tasks.multi_label import MultiLabel as MultiLabel
    from tfbp.tasks.ordinal import Ordinal as Ordinal
    from tfbp.tasks.regression import Regression as Regression
    from tfbp.tasks.several import Tasks as Tasks
    from tfbp.tasks.task import Task as Task
    from tfbp.training.phase import Phase as Phase

_MODULES = {
    "Splits": "tfbp.data.splits",
    "Examples": "tfbp.data.examples",
    "augmentation": "tfbp.data.augmentation",
    "load_data": "tfbp.data.catalog",
    "load_text": "tfbp.data.catalog",
    "image_folder": "tfbp.data.folders",
    "Vocabulary": "tfbp.data.vocabulary",
    "load_backbone": "tfbp.modeling.backbones",
    "load_weights": "tfbp.modeling.backbones",
    "swap_head": "tfbp.modeling.heads",
    "add_lora": "tfbp.modeling.adapters",
    "Classification": "tfbp.tasks.classification",
    "MultiLabel": "tfbp.tasks.multi_label",
    "Ordinal": "tfbp.tasks.ordinal",
    "Regression": "tfbp.tasks.regression",
    "LanguageModel": "tfbp.tasks.language",
    "Tasks": "tfbp.tasks.several",
    "Task": "tfbp.tasks.task",
    "Phase": "tfbp.training.phase",
    "check_gradients": "tfbp.gradients.check",
    "Finding": "tfbp.finding",
    "audit": "tfbp.auditing.audit",
    "Settings": "tfbp.settings",
    "Config": "tfbp.recipe",
    "field": "tfbp.settings",
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tfbp' has no attribute {name!r}")
    check_environment()
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
