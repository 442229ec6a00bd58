import json
import os
import pathlib
import shutil
import threading

import keras
import processes
import pytest
import tensorflow as tf

import tfbp
from tfbp import commands
from tfbp.commands import launch
from tfbp.errors import UserError
from tfbp.workers import rendezvous, strategy

ROOT = pathlib.Path(__file__).parents[2]


def config(cluster, job="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


TWO = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize("name", ["auto", "one", None])
def test_without_several_gpus_the_current_strategy_is_taken(name):
    assert strategy.resolve(name) is tf.distribute.get_strategy()


def test_mirrored_spans_all_devices_of_a_kind():
    mirrored = strategy.resolve("mirrored")
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    assert mirrored.num_replicas_in_sync == len(devices)


def test_a_strategy_is_returned_as_it_is():
    given = tf.distribute.OneDeviceStrategy("CPU:0")
    assert strategy.resolve(given) is given


SUPPORTED = "Received: {!r}.\nKnown:\n - auto\n - mirrored\n - multiworker\n - one"


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        (
            "parameter_server",
            tf.distribute.ParameterServerStrategy,
            "parameter servers apply gradients whenever a worker has some",
        ),
        (
            "central_storage",
            tf.distribute.experimental.CentralStorageStrategy,
            "it is an experiment of TensorFlow's; 'mirrored' trains on the same devices",
        ),
        ("tpu", tf.distribute.TPUStrategy, "on TPUs nothing of what tfbp promises has been tried"),
    ],
)
def test_other_strategies_of_tensorflow_are_refused_with_the_reason(name, kind, reason):
    made = kind.__new__(kind)  # without its servers and devices
    begin = f"`strategy` must be one of the supported strategies: {reason}"
    for refuse, received in (
        (lambda: tfbp.Settings(strategy=name), name),
        (lambda: strategy.resolve(made), kind.__name__),
        (lambda: tfbp.fit(None, None, None, [], strategy=made), kind.__name__),
    ):
        with pytest.raises(UserError) as caught:
            refuse()
        assert str(caught.value).startswith(begin)
        assert SUPPORTED.format(received) in str(caught.value)


def test_the_flag_for_another_strategy_is_refused_with_the_reason(tmp_path, capsys):
    flags = "--strategy=parameter_server", f"--workdir={tmp_path / 'run'}"
    assert commands.main(ROOT / "recipes", ["run", "linear_regression", *flags]) == 2
    assert "parameter servers apply gradients whenever" in capsys.readouterr().err


def model_parallel():
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layout = keras.distribution.LayoutMap(mesh)
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


@pytest.mark.parametrize(
    "make", [model_parallel, lambda: keras.distribution.DataParallel(devices=["cpu:0"])]
)
@pytest.mark.parametrize("name", [None, "auto", "one"])
def test_distributions_of_keras_are_refused_with_the_reason(make, name):
    distribution = make()
    keras.distribution.set_distribution(distribution)
    try:
        with pytest.raises(UserError) as caught:
            strategy.resolve(name)
    finally:
        keras.distribution.set_distribution(None)
    said = str(caught.value)
    assert said.startswith("`keras.distribution` must not be set: tfbp trains by strategies of tf.")
    assert "It does not split a model's weights over devices." in said
    assert said.endswith(f"Received: '{type(distribution).__name__}'.")
    assert strategy.resolve("one") is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("cluster", "job", "reason"),
    [
        ({"worker": ["a:1"], "ps": ["b:2"]}, "worker", "no parameter servers: parameter servers"),
        ({"ps": ["a:1"]}, "ps", "no parameter servers: parameter servers apply gradients when"),
        (TWO, "evaluator", "no evaluator: the workers themselves evaluate after each epoch. Rec"),
        ({"worker": ["a:1"], "evaluator": ["b:2"]}, "worker", "no evaluator: the workers them"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_cluster_with_other_tasks_than_workers_is_refused_with_the_reason(
    monkeypatch, cluster, job, reason, name
):
    monkeypatch.setenv("TF_CONFIG", config(cluster, job))
    with pytest.raises(UserError) as caught:
        strategy.resolve(name)
    assert str(caught.value).startswith(f"`TF_CONFIG` must name workers alone, and {reason}")


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"`strategy` must be .*Did you mean 'mirrored'\?"):
        strategy.resolve("miror")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        json.dumps({"cluster": 3, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": TWO}),
        json.dumps({"cluster": TWO, "task": {"index": 0}}),
        config(TWO, index=2),
        config(TWO, index=-1),
        config(TWO, index="first"),
        config(TWO, index=None),
        config(TWO, job="chief"),
        config({"worker": "a:1"}),
        config({"worker": ["a", "b:2"]}),
        config({"worker": ["a:0", "b:2"]}),
        config({"worker": ["a:65536", "b:2"]}),
        config({"worker": ["a:1", "a:1"]}),
    ],
)
@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_tf_config_that_describes_no_cluster_is_refused(monkeypatch, name, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError) as caught:
        strategy.resolve(name)
    said = (
        "`TF_CONFIG` must name a cluster of workers, each by an address of its own with a port, "
        "and the task of this one among them, in JSON."
    )
    assert str(caught.value) == f"{said} Received: {text!r}."


@pytest.mark.parametrize("text", [None, "", "{}", '{"cluster": {}}', '{"task": {"index": 0}}'])
def test_without_a_cluster_auto_is_one_worker_and_multiworker_a_mistake(monkeypatch, text):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    assert strategy.resolve("auto") is tf.distribute.get_strategy()
    with pytest.raises(UserError, match="`strategy` needs the environment variable TF_CONFIG, or"):
        strategy.resolve("multiworker")


@pytest.mark.parametrize(
    ("cluster", "job", "several"),
    [
        ({"worker": ["a:1"]}, "worker", False),
        ({"chief": ["a:1"]}, "chief", False),
        (TWO, "worker", True),
        ({"chief": ["a:1"], "worker": ["b:2"]}, "chief", True),
    ],
)
def test_auto_is_multiworker_where_several_are_named(monkeypatch, cluster, job, several):
    monkeypatch.setenv("TF_CONFIG", config(cluster, job))
    assert strategy.choose("auto") == ("multiworker" if several else "one")
    assert strategy.choose("multiworker") == "multiworker"
    one = tf.distribute.get_strategy()
    assert strategy.resolve("one") is one
    for name in ("auto", "multiworker"):  # To open a run is the work of one process.
        assert strategy.resolve(name, alone=True) is one


def test_several_workers_are_refused_once_tensorflow_is_at_work(monkeypatch):
    tf.constant(1) + 1
    chief = json.loads(launch.configs(2)[0])
    monkeypatch.setenv("TF_CONFIG", json.dumps(chief))
    other = threading.Thread(target=rendezvous.join, args=(chief["cluster"]["worker"], 1))
    other.start()
    with pytest.raises(UserError, match="`strategy` must be made before TensorFlow does anything"):
        strategy.resolve("multiworker")
    other.join()


def slurm(rank, **more):
    step = {"NUM_TASKS": "2", "NODELIST": "localhost", "TASKS_PER_NODE": "2"}
    return {f"SLURM_STEP_{name}": text for name, text in step.items()} | {
        "SLURM_PROCID": str(rank),
        **more,
    }


@pytest.mark.parametrize(
    ("rank", "variables", "addresses"),
    [
        (1, {}, ["localhost:8888", "localhost:8889"]),
        (
            2,
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_STEP_NODELIST": "node[08-09],x",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2),2",
            },
            ["node08:8888", "node09:8888", "x:8888", "x:8889"],
        ),
    ],
)
def test_a_step_of_slurm_names_the_workers_also_without_gpus(
    monkeypatch, rank, variables, addresses
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name, text in slurm(rank, **variables).items():
        monkeypatch.setenv(name, text)
    resolver = strategy._slurm()
    assert resolver.cluster_spec().as_dict() == {"worker": addresses}
    assert (resolver.task_type, resolver.task_id) == ("worker", rank)
    assert resolver.num_accelerators() == {"GPU": 0}


def test_slurm_deals_the_gpus_of_a_node_out_to_its_workers(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for name, text in slurm(1, CUDA_VISIBLE_DEVICES="0,1,2,3").items():
        monkeypatch.setenv(name, text)
    resolver = strategy._slurm()
    assert resolver.cluster_spec().as_dict() == {"worker": ["localhost:8888", "localhost:8889"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_half_of_a_step_of_slurm_is_a_mistake(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    with pytest.raises(UserError, match=r"needs a step of Slurm .*SLURM_PROCID not found"):
        strategy.resolve("multiworker")


PROGRAM = """
from tfbp.workers import strategy, workers
group = workers.of(strategy.resolve("multiworker"))
print(group.gather(f"{group.index} of {group.count}".encode()))
"""


@pytest.mark.slow
def test_two_workers_of_slurm_join(tmp_path):
    kept = {name: text for name, text in os.environ.items() if name != "TF_CONFIG"}
    logs = [tmp_path / "0", tmp_path / "1"]
    started = [
        processes.start(PROGRAM, env=kept | slurm(rank), log=log) for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(300) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], said
    assert all(text.endswith("[b'0 of 2', b'1 of 2']\n") for text in said)
