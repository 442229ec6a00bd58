"""The rules that every file of the package keeps, read from the source itself."""

import ast
import importlib
import inspect
import pathlib

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted([*(ROOT / "tfbp").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_bytes()) for file in FILES}

KERAS_GRAPH = "tfbp/modeling/keras_graph.py"
# Keras's private names that it uses, each with what has it: a key of `having`, or a callback.
KERAS_NAMES = {
    "_flatten_layers": "dense",
    "_functional": "sequential",
    "_nodes_by_depth": "functional",
    "_inputs_struct": "functional",
    "_outputs_struct": "functional",
    "_standardize_inputs": "functional",
    "_keras_history": "symbolic tensor",
    "_keras_mask": "masked tensor",
    "_kernel": "dense",
    "_embeddings": "embedding",
    "_track_variable": "dense",
    "_untrack_variable": "dense",
    "_tracker": "dense",
    "_value": "variable",
    "_dtype": "variable",
    "_compile_loss": "sequential",
    "_compile_config": "sequential",
    "_flat_losses": "compiled loss",
    "_all_reduce_sum_gradients": "optimizer",
    "_trainable_variables": "optimizer",
    "_get_variable_index": "optimizer",
    "_batches_seen_since_last_saving": keras.callbacks.ModelCheckpoint,
    "_last_batch_seen": keras.callbacks.ModelCheckpoint,
    "_total_batches_seen": keras.callbacks.OrbaxCheckpoint,
    "_global_train_batch": keras.callbacks.TensorBoard,
    "_global_test_batch": keras.callbacks.TensorBoard,
}
KERAS_IMPORTS = {
    "keras.src.random.seed_generator": "global_seed_generator",
    "keras.src.saving.serialization_lib": "SafeModeScope",
}
# TensorFlow's and Python's own, each in the file that needs it.
OTHER_NAMES = {
    "tfbp/caching/tracing.py": {"_get_function"},
    "tfbp/serving/signature.py": {"_make_callable_from_options"},
    "tfbp/commands/__init__.py": {"_exit"},
    "tfbp/workers/interruption.py": {"_exit"},
}


@pytest.fixture(scope="module")
def having():
    """Returns objects of Keras that have private names."""
    tokens = keras.Input((3,), dtype="int32")
    embedding = keras.layers.Embedding(5, 2, mask_zero=True)
    functional = keras.Model(tokens, keras.layers.Dense(1)(embedding(tokens)))
    sequential = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    sequential.compile("sgd", "mse")
    sequential.train_on_batch(np.zeros((1, 2)), np.zeros((1, 1)))
    dense = sequential.layers[0]
    return {
        "functional": functional,
        "sequential": sequential,
        "symbolic tensor": functional.outputs[0],
        "masked tensor": embedding(np.zeros((1, 3))),
        "embedding": embedding,
        "dense": dense,
        "variable": dense.kernel,
        "compiled loss": sequential._compile_loss,
        "optimizer": sequential.optimizer,
    }


def private(name):
    return name.startswith("_") and not name.startswith("__") and name.strip("_").isidentifier()


def of_self(node):
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def attributes(tree):
    """Returns the private attributes that a module uses of whatever object."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if private(node.attr)}


def strings(tree):
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in nodes if isinstance(node.value, str) and private(node.value)}


def defined(tree):
    """Returns what a module defines itself: functions, variables, and attributes of `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            names.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:  # vars(self).update(_model=model)
            names.add(node.arg)
    return names


def methods(tree):
    """Returns the methods of a module's classes, which may replace those of a base."""
    return {
        part.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.FunctionDef)
    }


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)


@pytest.mark.parametrize("file", sorted(TREES.keys() - {KERAS_GRAPH}))
def test_a_file_uses_no_private_names_but_its_own(file):
    tree = TREES[file]
    assert attributes(tree) - defined(tree) <= OTHER_NAMES.get(file, set())
    assert not (strings(tree) | methods(tree)) & KERAS_NAMES.keys()
    assert not [name for name in imports(tree) if name.startswith("keras.src")]


def test_keras_graph_uses_the_listed_private_names_of_keras_and_no_others():
    tree = TREES[KERAS_GRAPH]
    used = attributes(tree) | strings(tree) | set(filter(private, methods(tree)))
    assert used == KERAS_NAMES.keys()
    assert {name for name in imports(tree) if "keras.src" in name} == KERAS_IMPORTS.keys()


@pytest.mark.parametrize("name", KERAS_NAMES)
def test_the_installed_keras_has_each_listed_name(having, name):
    owner = KERAS_NAMES[name]
    if isinstance(owner, str):
        assert hasattr(having[owner], name)
    else:  # To be made, a callback needs folders, and packages that may not be there.
        assert f"self.{name} = " in inspect.getsource(owner)


@pytest.mark.parametrize("module", KERAS_IMPORTS)
def test_the_installed_keras_has_each_listed_import(module):
    assert hasattr(importlib.import_module(module), KERAS_IMPORTS[module])
