"""One loaded version of a model: its signatures, its warm-up, and who still uses it."""

import pathlib
import threading

import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import prediction_log_pb2

from tfbp.exporting import layout
from tfbp.serving import examples, images, tensors
from tfbp.serving.limits import Limits
from tfbp.serving.rest_request import DEFAULT, Specs
from tfbp.serving.signature import Signature, session_config
from tfbp.serving.status import Code, StatusError, invalid

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
        self._unusable: dict[str, StatusError] = {}
        try:
            with self._session.graph.as_default():
                loaded = tf.compat.v1.saved_model.loader.load(
                    self._session, [tf.saved_model.SERVING], str(folder)
                )
            self.definitions = dict(loaded.signature_def)
            decodes = images.decoded_by(loaded.graph_def)
            for name, definition in self.definitions.items():
                try:
                    signature = Signature(name, definition, self._session, limits, decodes)
                except StatusError as error:  # The other ones can be asked for all the same.
                    self._unusable[name] = error
                else:
                    self.signatures[name] = signature
            self._warm_up(folder / layout.WARMUP)
        except BaseException:  # It goes on; what was loaded would stay.
            self.close()
            raise

    def signature(self, name: str) -> Signature:
        """Returns a signature by its name; without a name the default one.

        Raises:
            StatusError: there is no such signature (FAILED_PRECONDITION), or it takes or returns
                what is no dense tensor (UNIMPLEMENTED).
        """
        name = name or DEFAULT
        if name in self._unusable:
            raise self._unusable[name]
        if name not in self.signatures:
            raise StatusError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
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
    def json(self) -> dict[str, Specs]:
        """What the signatures take, by name, for requests in JSON."""
        return {name: signature.json for name, signature in self.signatures.items()}

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
            kind = log.WhichOneof("log_type")
            if kind not in ("predict_log", "classify_log", "regress_log"):
                logging.warning("A warm-up request of another kind is passed over: %s", kind)
                continue
            request = getattr(log, kind).request
            if kind == "predict_log":
                inputs = {key: tensors.of_proto(value) for key, value in request.inputs.items()}
            else:
                inputs = examples.of_input(request.input)
            self.signature(request.model_spec.signature_name).warm_up(inputs)
