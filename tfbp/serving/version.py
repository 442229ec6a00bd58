"""One loaded version of a model: its signatures, its warm-up, and who still uses it."""

import pathlib
import threading

import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import prediction_log_pb2

from tfbp.exporting import layout
from tfbp.serving import tensors
from tfbp.serving.limits import Limits
from tfbp.serving.signature import Signature, session_config
from tfbp.serving.status import invalid

DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
RECORD_FRAME = 16  # bytes of a TFRecord beside its data: the length and two checksums
MAX_WARMUP_RECORDS = 1000  # TensorFlow Serving refuses a model with more.


class Version:
    """A SavedModel, loaded as TensorFlow Serving loads it: a session with the tag `serve`.

    Attributes:
        number: the version.
        signatures: name → `Signature`.
        definitions: name → SignatureDef, all that the SavedModel has.
    """

    def __init__(self, folder: pathlib.Path, limits: Limits):
        """Loads and warms up a version.

        Raises: whatever TensorFlow and the operating system say about a broken one.
        """
        self.number = int(folder.name)
        self._users = 0
        self._lock = threading.Lock()
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=session_config())
        self.signatures: dict[str, Signature] = {}
        try:
            with self._session.graph.as_default():
                loaded = tf.compat.v1.saved_model.loader.load(
                    self._session, [tf.saved_model.SERVING], str(folder)
                )
            self.definitions = dict(loaded.signature_def)
            for name, definition in self.definitions.items():
                if definition.inputs:  # `__saved_model_init_op` has none
                    self.signatures[name] = Signature(name, definition, self._session, limits)
            self._warm_up(folder / layout.WARMUP)
        except BaseException:
            self.close()
            raise

    def signature(self, name: str) -> Signature:
        """Returns a signature by its name; without a name the default one.

        Raises:
            StatusError: there is no such signature (INVALID_ARGUMENT).
        """
        name = name or DEFAULT
        if name not in self.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def acquire(self) -> None:
        """Counts one more user, who keeps the version from being closed."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Counts one user less."""
        with self._lock:
            self._users -= 1

    @property
    def in_use(self) -> bool:
        """Whether a request is being answered."""
        with self._lock:
            return self._users > 0

    def close(self) -> None:
        """Frees what the version holds. Nobody may use it any more."""
        for signature in self.signatures.values():
            signature.close()
        self._session.close()

    def _warm_up(self, file: pathlib.Path) -> None:
        """Replays the requests that the export carries; one that fails makes the version broken."""
        if not file.is_file():
            return
        records = list(tf.data.TFRecordDataset(str(file)).take(MAX_WARMUP_RECORDS + 1))
        framed = sum(len(record.numpy()) + RECORD_FRAME for record in records)
        if len(records) <= MAX_WARMUP_RECORDS and framed != file.stat().st_size:
            raise invalid("The file of warm-up requests is cut off")
        if len(records) > MAX_WARMUP_RECORDS:
            raise invalid(f"There are more than {MAX_WARMUP_RECORDS} warm-up requests")
        for record in records:
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            if log.WhichOneof("log_type") != "predict_log":
                logging.warning("Only requests to predict are replayed to warm up.")
                continue
            request = log.predict_log.request
            inputs = {key: tensors.of_proto(value) for key, value in request.inputs.items()}
            self.signature(request.model_spec.signature_name).warm_up(inputs)
