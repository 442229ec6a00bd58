import re

import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfbp.errors import UserError
from tfbp.serving import production
from tfbp.serving.limits import Limits

PORTS = {"port": 8501, "grpc_port": 8500}


def read(folder):
    text = (folder / "models.config").read_text()
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(text, config)
    return {one.name: one for one in config.model_config_list.config}


def test_the_files_name_every_model_where_it_lies(tmp_path, write):
    for name in ("a", "b"):
        write.half_plus(tmp_path / name / "1", 2)
    (tmp_path / "no model").mkdir()
    limits = Limits(max_batch_size=64, max_queue=1000, batch_timeout_ms=1.5, deadline_seconds=7)
    written = production.write(tmp_path, **PORTS, limits=limits, labels={})
    models = read(tmp_path)
    assert {name: one.base_path for name, one in models.items()} == {
        "a": str(tmp_path / "a"),
        "b": str(tmp_path / "b"),
    }
    assert {one.model_platform for one in models.values()} == {"tensorflow"}
    batching = dict(
        re.findall(r"^(\w+) \{ value: (\d+) \}$", (tmp_path / "batching.config").read_text(), re.M)
    )
    assert batching.pop("num_batch_threads").isdecimal()
    assert batching == {
        "max_batch_size": "64",
        "batch_timeout_micros": "1500",
        "max_enqueued_batches": "16",
    }
    assert written.unbatched == []
    assert written.command == [
        "tensorflow_model_server",
        "--port=8500",
        "--rest_api_port=8501",
        "--rest_api_timeout_in_ms=7000",
        f"--model_config_file={tmp_path / 'models.config'}",
        "--enable_batching",
        f"--batching_parameters_file={tmp_path / 'batching.config'}",
    ]


def test_labels_keep_their_versions_and_newer_ones_are_taken_up(tmp_path, write):
    for number in (1, 2, 10):
        write.half_plus(tmp_path / "m" / str(number), 2)
    labels = {"m": {"stable": 1, "canary": 10}}
    written = production.write(tmp_path, **PORTS, limits=Limits(), labels=labels)
    model = read(tmp_path)["m"]
    assert dict(model.version_labels) == {"stable": 1, "canary": 10}
    # What comes later is taken up too, as it is here.
    assert model.model_version_policy.WhichOneof("policy_choice") == "all"
    assert written.whole == ["m"]
    assert "--allow_version_labels_for_unavailable_models" in written.command
    with pytest.raises(UserError, match="`--labels` must name a version of m"):
        production.write(tmp_path, **PORTS, limits=Limits(), labels={"m": {"stable": 3}})


def test_batching_is_left_out_where_tensorflow_serving_would_refuse_a_signature(tmp_path, write):
    write.half_plus(tmp_path / "good" / "1", 2)
    write.shapes(tmp_path / "shapes" / "1")
    written = production.write(tmp_path, **PORTS, limits=Limits(), labels={})
    assert written.unbatched == ["shapes/scalar", "shapes/spin"]
    assert "--enable_batching" not in written.command


def test_a_folder_without_models_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="`SAVED_MODELS` must be a folder that holds"):
        production.write(tmp_path, **PORTS, limits=Limits(), labels={})
    assert list(tmp_path.iterdir()) == []


def test_batching_is_left_out_where_rows_may_have_any_size(tmp_path, write):
    spec = tf.TensorSpec([None, None, None, 3], tf.float32)
    first = (lambda image: {"y": image[:, 0, 0, 0]}, {"image": spec})
    write.functions(tmp_path / "m" / "1", any=first)
    written = production.write(tmp_path, **PORTS, limits=Limits(), labels={})
    assert written.unbatched == ["m/any"]
    assert "--enable_batching" not in written.command


def test_what_is_no_loadable_version_is_passed_over(tmp_path, write):
    write.half_plus(tmp_path / "m" / "1", 2)
    (tmp_path / "m" / "7").write_text("a stray file")
    (tmp_path / "m" / "8").mkdir()
    (tmp_path / "m" / "9").mkdir()
    (tmp_path / "m" / "9" / "saved_model.pb").write_bytes(b"half a model")
    (tmp_path / "n" / "1").mkdir(parents=True)
    written = production.write(tmp_path, **PORTS, limits=Limits(), labels={"m": {"stable": 1}})
    assert read(tmp_path).keys() == {"m"}
    assert written.skipped == ["n"]
    for number in (7, 8, 9):
        with pytest.raises(UserError, match="`--labels` must name a version of m"):
            production.write(tmp_path, **PORTS, limits=Limits(), labels={"m": {"stable": number}})


def test_a_label_of_a_model_that_is_not_there_is_a_mistake(tmp_path, write):
    write.half_plus(tmp_path / "mlp" / "1", 2)
    labels = {"mpl": {"stable": 1}}
    with pytest.raises(UserError, match=r"`--labels` must name a model.*mean 'mlp'"):
        production.write(tmp_path, **PORTS, limits=Limits(), labels=labels)
