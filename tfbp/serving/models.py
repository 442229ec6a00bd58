"""The models of a folder, and which version of each answers: watched, swapped and drained."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping

from absl import logging

from tfbp.errors import mistake
from tfbp.exporting import layout
from tfbp.serving.limits import Limits
from tfbp.serving.metrics import Metrics
from tfbp.serving.model import Model
from tfbp.serving.status import Code, StatusError, invalid
from tfbp.serving.version import Version

POLL_SECONDS = 0.25


class Models:
    """Keeps what is served equal to what lies in a folder, from a thread of its own.

    Args:
        folder: holds `<model>/<version>/saved_model.pb`, or is the folder of one model.
        limits: for the signatures of all versions.
        labels: model → label → version. Labelled versions stay loaded beside the newest.
        metrics: counts what is loaded.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        limits: Limits,
        labels: Mapping[str, Mapping[str, int]],
        metrics: Metrics,
    ):
        self._folder, self._limits, self._labels, self._metrics = folder, limits, labels, metrics
        self._logged = ""
        self._models: dict[str, Model] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)

    def start(self) -> None:
        """Loads what is there, and watches from then on. A version that is broken is logged."""
        self._scan()
        for name, labels in self._labels.items():
            states = self._models[name].states() if name in self._models else {}
            for label, number in labels.items():
                if states.get(number, ("END", None))[0] != "AVAILABLE":
                    logging.warning(
                        "Label %s of %s: version %d is not served.", label, name, number
                    )
        self._thread.start()

    def close(self) -> None:
        """Ends the watching and frees all versions, which nobody may use any more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for model in self._models.values():
            model.close()

    @contextlib.contextmanager
    def use(self, name: str, number: int | None, label: str | None) -> Iterator[Version]:
        """Yields the version that a request asks for, which stays whole within the block.

        Raises:
            StatusError: there is no such model or version (NOT_FOUND), or no such label
                (INVALID_ARGUMENT).
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        number = self._number(name, number, label)
        model = self._models.get(name)
        version = model.acquire(number) if model is not None else None
        if version is None:
            wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")
        try:
            yield version
        finally:
            version.release()

    def known(self, name: str) -> bool:
        """Returns whether there is, or was, a model of a name."""
        return name in self._models

    def status(self, name: str, number: int | None) -> list[tuple[int, str, StatusError | None]]:
        """Returns (version, state, error) of a model's versions, newest first, or of one of them.

        The states are those of TensorFlow Serving: START, LOADING, AVAILABLE, UNLOADING, END.

        Raises:
            StatusError: there is no such model or version (NOT_FOUND).
        """
        model = self._models.get(name)
        states = model.states() if model else {}
        if number is not None:
            if number not in states:
                raise StatusError(
                    Code.NOT_FOUND, f"Could not find version {number} of model {name}"
                )
            return [(number, *states[number])]
        if not states:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        return [(number, *state) for number, state in sorted(states.items(), reverse=True)]

    def _number(self, name: str, number: int | None, label: str | None) -> int | None:
        if label is None:
            return number
        if number is not None:
            raise invalid(
                f"Both model version ({number}) and model version label ({label}) "
                "cannot be supplied."
            )
        if label not in self._labels.get(name, {}):
            raise invalid(f"Unrecognized servable version label: {label}")
        return self._labels[name][label]

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            try:
                self._scan()
            except Exception as error:  # The watching must outlive whatever lies in the folder.
                if str(error) != self._logged:
                    logging.error("The models in %s: %s", self._folder, error, exc_info=error)
                self._logged = str(error)

    def _scan(self) -> None:
        for name, folder in model_folders(self._folder).items():
            if name not in self._models:
                labelled = set(self._labels.get(name, {}).values())
                self._models[name] = Model(name, folder, self._limits, labelled, self._metrics)
        for model in list(self._models.values()):
            model.scan()


def check_labels(labels: Mapping[str, Mapping[str, int]], models: Iterable[str]) -> None:
    """Refuses labels for what is no model.

    Raises:
        tfbp.UserError: a labelled model is not among `models`.
    """
    models = set(models)
    for name in labels.keys() - models:
        raise mistake("--labels", "must name a model", name, models)


def model_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns name → folder of the models in a folder, which may be that of one model itself."""
    if _is_model(folder):
        return {folder.resolve().name: folder}
    try:
        with os.scandir(folder) as entries:
            found = [pathlib.Path(entry.path) for entry in entries if layout.is_folder(entry)]
    except FileNotFoundError:
        return {}
    return {path.name: path for path in sorted(found) if _is_model(path)}


def _is_model(folder: pathlib.Path) -> bool:
    try:
        return bool(layout.versions(folder))
    except NotADirectoryError:
        return False
    except OSError:  # It may be one; whoever reads it says why not.
        return True
