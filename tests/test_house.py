"""The rules that every file of the package keeps, read from the source itself."""

import ast
import graphlib
import importlib
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted([*(ROOT / "tfbp").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_bytes()) for file in FILES}

MODULES = {
    name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in TREES
}

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
# The map of the house: each imports only from those before it, and from itself.
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ORDER = tuple(re.findall(r"^\| `(\w+)` \|", MAP, re.MULTILINE))
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 80, 12
# TensorFlow's and Python's own, each in the file that needs it.
OTHER_NAMES = {
    "tfbp/caching/tracing.py": {"_get_function"},
    "tfbp/serving/signature.py": {"_do_run", "_make_callable_from_options"},
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
    """Yields the modules that a module imports anywhere, inside functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                name = f"{node.module}.{each.name}"
                yield name if name in MODULES else node.module


def folder(module):
    """Returns what stands in the order of the house: `data` of `tfbp.data.text`."""
    return module.split(".")[1]


def functions():
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file}:{node.name}", node


@pytest.mark.parametrize("file", sorted(TREES.keys() - {KERAS_GRAPH}))
def test_a_file_uses_no_private_names_but_its_own(file):
    tree = TREES[file]
    assert attributes(tree) - defined(tree) <= OTHER_NAMES.get(file, set())
    assert not (strings(tree) | methods(tree)) & KERAS_NAMES.keys()
    assert not [name for name in imports(tree) if name.startswith("keras.src")]
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "src"
    ]


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


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("tfbp.")])
def test_a_module_imports_only_from_folders_before_its_own(module):
    own = imports(TREES[MODULES[module]])
    folders = {folder(name) for name in own if name.startswith("tfbp.")}
    assert folders <= {*ORDER[: ORDER.index(folder(module)) + 1]}


def test_no_module_imports_itself_through_others():
    edges = {name: set(imports(TREES[file])) & MODULES.keys() for name, file in MODULES.items()}
    graph = graphlib.TopologicalSorter(edges)
    graph.prepare()  # which raises CycleError, with the circle


def test_tfbp_knows_no_recipe_and_recipes_know_no_other():
    for module, file in MODULES.items():
        known = {name for name in imports(TREES[file]) if name.split(".")[0] == "recipes"}
        assert not known - {"recipes"} or module == "recipes.__main__", module


def test_no_file_is_too_long():
    lengths = {file: len((ROOT / file).read_text().splitlines()) for file in TREES}
    assert {file: length for file, length in lengths.items() if length > FILE_LINES} == {}


def test_no_function_is_too_long_without_its_docstring():
    lengths = {}
    for name, node in functions():
        documented = ast.get_docstring(node) is not None
        described = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
        lengths[name] = node.end_lineno - node.lineno + 1 - described
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


def test_no_function_has_too_many_parameters():
    counts = {}
    for name, node in functions():
        parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        counts[name] = len([each for each in parameters if each.arg not in ("self", "cls")])
    assert {name: count for name, count in counts.items() if count > PARAMETERS} == {}
