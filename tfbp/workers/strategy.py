"""The devices that a run trains on, as a `tf.distribute` strategy."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import sys

import keras
import tensorflow as tf

from tfbp.errors import UserError, mistake
from tfbp.settings import STRATEGIES, UNSUPPORTED_STRATEGIES, unsupported_strategy
from tfbp.workers import rendezvous, workers

_UNSUPPORTED = {
    "parameter_server": tf.distribute.ParameterServerStrategy,
    "central_storage": tf.distribute.experimental.CentralStorageStrategy,
    "tpu": tf.distribute.TPUStrategy,
}
_NO_JOBS = {
    "ps": f"no parameter servers: {UNSUPPORTED_STRATEGIES['parameter_server']}",
    "evaluator": "no evaluator: the workers themselves evaluate after each epoch",
}


def resolve(
    strategy: str | tf.distribute.Strategy | None, *, alone: bool = False
) -> tf.distribute.Strategy:
    """Returns a strategy by name.

    Args:
        strategy: "one" device; "mirrored" over all GPUs, or all logical CPUs if there are no GPUs;
            "multiworker" over the processes that the environment names (TF_CONFIG, or else Slurm's
            variables), each with all of its GPUs or its CPU; "auto": multiworker if TF_CONFIG names
            several workers, else mirrored if there are two GPUs or more, else one; None: the
            current one; or a strategy, returned as it is.
        alone: whether this process is to be the only one, whatever the name says.

    Raises:
        tfbp.UserError: an unknown name, a strategy that tfbp does not support, one of Keras's own
            distributions, or a TF_CONFIG that does not describe a cluster of workers.
    """
    _refuse_keras_distribution()
    if strategy is None:
        strategy = tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.Strategy):
        for name, kind in _UNSUPPORTED.items():
            if isinstance(strategy, kind):
                raise unsupported_strategy(name, type(strategy).__name__)
        return strategy
    kind = choose(strategy, alone=alone)
    if kind == "multiworker":
        return _multiworker()
    return _mirrored() if kind == "mirrored" else tf.distribute.get_strategy()


def choose(name: str, *, alone: bool = False) -> str:
    """Returns "one", "mirrored" or "multiworker": what a name of `resolve` means here."""
    if name not in STRATEGIES:
        raise mistake("strategy", "must be one of the known names or a strategy", name, STRATEGIES)
    if name in ("one", "mirrored") or (name == "multiworker" and not alone):
        return name
    if not alone and _named_workers() > 1:
        return "multiworker"
    return "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "one"


def _refuse_keras_distribution() -> None:
    distribution = keras.distribution.distribution()
    if distribution is not None:
        raise mistake(
            "keras.distribution",
            "must not be set: tfbp trains by strategies of tf.distribute, in which each device "
            "holds the whole model and a part of each batch. It does not split a model's weights "
            "over devices. Call keras.distribution.set_distribution(None), and choose a `strategy`",
            type(distribution).__name__,
        )


@functools.cache
def _mirrored() -> tf.distribute.MirroredStrategy:
    # One for the whole process: a second one would number its collective operations from 0 again,
    # and clash with the first one.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


@functools.cache
def _multiworker() -> tf.distribute.MultiWorkerMirroredStrategy:
    if _named_workers():
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif "SLURM_STEP_NODELIST" in os.environ:
        resolver = _slurm()
    else:
        rule = "needs the environment variable TF_CONFIG, or a step of Slurm (`srun`)"
        raise mistake("strategy", rule, "multiworker")
    _, addresses, index = workers.cluster(resolver)
    rendezvous.join(addresses, index)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        rule = "must be made before TensorFlow does anything else, and the model in its scope"
        raise mistake("strategy", rule, "multiworker") from error
    except tf.errors.OpError as error:
        rule = f"must name addresses at which TensorFlow can start its engine: {error.message}"
        raise mistake("TF_CONFIG", rule, addresses) from error
    # TensorFlow has installed a handler of its own. Outside the main thread that cannot be undone.
    with contextlib.suppress(ValueError, TypeError):
        signal.signal(signal.SIGTERM, handler)
    return strategy


def _slurm() -> tf.distribute.cluster_resolver.ClusterResolver:
    resolvers = tf.distribute.cluster_resolver
    try:
        if shutil.which("nvidia-smi"):
            return resolvers.SlurmClusterResolver()
        # TensorFlow's resolver assigns GPUs to the tasks, and fails if there are none to assign.
        no_gpus = {"gpus_per_node": sys.maxsize, "gpus_per_task": 1, "auto_set_gpu": False}
        resolver = resolvers.SlurmClusterResolver(**no_gpus)
        spec = resolver.cluster_spec()
    except (RuntimeError, ValueError) as error:
        rule = f"needs a step of Slurm (`srun`), or the environment variable TF_CONFIG: {error}"
        raise mistake("strategy", rule, "multiworker") from error
    job, task = resolver.get_task_info()
    return resolvers.SimpleClusterResolver(
        spec, task_type=job, task_id=task, num_accelerators={"GPU": 0}, rpc_layer="grpc"
    )


def _named_workers() -> int:
    """Returns how many workers TF_CONFIG names; 0 if it names no cluster.

    Raises:
        tfbp.UserError: TF_CONFIG is not JSON that describes a cluster of workers and a task of it.
    """
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        cluster = config.get("cluster") or {}
        for job in (*cluster, (config.get("task") or {}).get("type")):
            if job in _NO_JOBS:
                raise mistake("TF_CONFIG", f"must name workers alone, and {_NO_JOBS[job]}", text)
        if not cluster:
            return 0
        jobs = {job: list(cluster[job]) for job in cluster if job in ("chief", "worker")}
        addresses = [address for listed in jobs.values() for address in listed]
        ports = [re.fullmatch(r".+:(\d+)", each) for each in addresses]
        wrong = [port for port in ports if not port or not 0 < int(port[1]) < 1 << 16]
        if wrong or len(set(addresses)) < len(addresses):
            raise ValueError
        task = config["task"]
        if not 0 <= int(task["index"]) < len(jobs[task["type"]]):
            raise ValueError
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        rule = (
            "must name a cluster of workers, each by an address of its own with a port, and the "
            "task of this one among them, in JSON"
        )
        raise mistake("TF_CONFIG", rule, text) from error
    return len(addresses)
