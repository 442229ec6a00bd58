import h5py
import keras
import models
import numpy as np
import pytest

from tfbp.modeling import hdf5


def network():
    layers = keras.layers
    return models.chain((3,), layers.Dense(4), layers.Dropout(0.5), layers.BatchNormalization())


def old_form(path):
    """Writes texts as attributes, as the files of `keras.applications` have them."""
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = b"tensorflow"
        for name in ("dense", "dense_1"):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            group[f"{name}/kernel:0"], group[f"{name}/bias:0"] = np.eye(3), np.zeros(3)


def test_the_weights_are_counted_without_the_optimizer_and_the_seeds(tmp_path):
    model = network()
    model.compile("adam", "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 4)), verbose=0)
    model.save_weights(tmp_path / "x.weights.h5")
    model.save(tmp_path / "x.keras")
    with h5py.File(tmp_path / "x.weights.h5") as file:
        stored = []
        file.visititems(lambda name, value: stored.append(isinstance(value, h5py.Dataset)))
    assert sum(stored) > len(model.weights) == 6
    for name in ("x.weights.h5", "x.keras"):
        assert hdf5.look_up(tmp_path / name) == hdf5.Contents(False, None, 6)


def test_a_whole_model_is_told_from_its_weights(tmp_path):
    network().save(tmp_path / "x.h5")
    assert hdf5.look_up(tmp_path / "x.h5").whole_model
    old_form(tmp_path / "y.h5")
    assert hdf5.look_up(tmp_path / "y.h5") == hdf5.Contents(False, None, 4)


def soft_link(file, place):
    file["a/linked"] = h5py.SoftLink("/a/array")


def external_link(file, place):
    file["a/linked"] = h5py.ExternalLink(str(place), "/array")


def external_storage(file, place):
    file.create_dataset("a/linked", (3,), "f4", external=[(str(place), 0, 12)])


def virtual(file, place):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(place), "array", (3,))
    file.create_virtual_dataset("a/linked", layout)


@pytest.mark.parametrize("add", [soft_link, external_link, external_storage, virtual])
def test_what_leads_to_another_place_is_found_whether_the_place_is_there_or_not(tmp_path, add):
    place = tmp_path / "place.h5"
    with h5py.File(place, "w") as file:
        file["array"] = np.ones(3, np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/array"] = np.ones(3)
        file["b"] = file["a"]  # in the file itself: one part under two names
        add(file, place)
    assert hdf5.look_up(tmp_path / "x.h5").elsewhere == "a/linked"
    place.unlink()
    assert hdf5.look_up(tmp_path / "x.h5").elsewhere == "a/linked"


@pytest.mark.parametrize("signature", [b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"GCOL"])
def test_a_flipped_bit_in_the_structure_is_found(tmp_path, signature):
    old_form(tmp_path / "x.h5")
    content = bytearray((tmp_path / "x.h5").read_bytes())
    content[content.index(signature)] ^= 1
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"OSError|RuntimeError|KeyError"):
        hdf5.look_up(tmp_path / "x.h5")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_found(tmp_path, part):
    old_form(tmp_path / "x.h5")
    content = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="OSError"):
        hdf5.look_up(tmp_path / "x.h5")


def test_a_file_that_the_library_reads_for_ever_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "SECONDS", 3)
    old_form(tmp_path / "x.h5")
    content = bytearray((tmp_path / "x.h5").read_bytes())
    # The heap of texts (HDF5 File Format Specification, III.E): objects of index (2 bytes), count
    # (2), 4 bytes and size (8), then the text, up to the free space, whose index is 0.
    place = content.index(b"GCOL") + 16
    while int.from_bytes(content[place : place + 2], "little"):
        size = int.from_bytes(content[place + 8 : place + 16], "little")
        place += 16 + (size + 7) // 8 * 8
    content[place + 8 : place + 16] = bytes(8)
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"reading it does not end|OSError"):
        hdf5.look_up(tmp_path / "x.h5")


def test_a_process_that_dies_says_by_which_signal(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(hdf5, "__file__", str(program))
    with pytest.raises(ValueError, match="reading it ends with SIGSEGV"):
        hdf5.look_up(tmp_path / "x.h5")
