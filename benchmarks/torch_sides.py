"""PyTorch's sides of the benchmarks, in a process and, if wanted, an environment of their own.

It imports PyTorch and NumPy alone: `python torch_sides.py SIDE INPUT.npz`, with the arrays and
settings of the side, prints what it measured as JSON. `run` calls it from the benchmarks.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np


def run(side: str, python: str, **given) -> dict[str, float] | None:
    """Returns what a side measures in a process of its own; None where PyTorch is not installed.

    Args:
        side: "head_swap" or "language_model".
        python: the interpreter that has PyTorch; "": this one.
        given: arrays and numbers, see the side's function.

    Raises:
        subprocess.CalledProcessError: the side failed; its traceback is on standard error.
    """
    python = python or sys.executable
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    if found.returncode:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "input.npz")
        np.savez(path, **given)
        command = [python, __file__, side, str(path)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def version(python: str) -> str | None:
    """Returns the version of the PyTorch that `python` ("": this one) has, or None."""
    command = [python or sys.executable, "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def head_swap(given) -> dict[str, float]:
    """Trains the head alone: VGG16's layers with Keras's weights, frozen and without gradients.

    `given`: x, test_x float32 [n, 32, 32, 3] of 0 to 255; y, test_y int64 [n]; kernel_0, bias_0, …
    of the convolutions; kernel, bias of the head; epochs, batch_size, rate.
    """
    import torch

    def images(x):
        mean = np.array([103.939, 116.779, 123.68], np.float32)  # BGR, as the Keras model subtracts
        x = torch.from_numpy(x).flip(-1) - torch.from_numpy(mean)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    layers, number = [], 0
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            kernel = torch.from_numpy(given[f"kernel_{number}"]).permute(3, 2, 0, 1)
            layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
            _set(layer, kernel.contiguous(), torch.from_numpy(given[f"bias_{number}"]))
            layers += [layer, torch.nn.ReLU()]
            number += 1
        layers.append(torch.nn.MaxPool2d(2))
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    backbone = torch.nn.Sequential(*layers).requires_grad_(False)
    backbone = backbone.to(memory_format=torch.channels_last)
    head = torch.nn.Linear(*given["kernel"].shape)
    _set(head, torch.from_numpy(given["kernel"].T.copy()), torch.from_numpy(given["bias"]))
    x, y = images(given["x"]), torch.from_numpy(given["y"])
    loss = torch.nn.CrossEntropyLoss()
    # Before the clock: PyTorch imports its compiler with the first optimizer.
    optimizer = torch.optim.Adam(head.parameters(), lr=float(given["rate"]), eps=1e-7)
    began = time.perf_counter()
    for _ in range(int(given["epochs"])):
        for rows in torch.randperm(len(x)).split(int(given["batch_size"])):
            optimizer.zero_grad()
            loss(head(backbone(x[rows])), y[rows]).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        answers = [head(backbone(part)).argmax(1) for part in images(given["test_x"]).split(256)]
    right = torch.cat(answers).numpy() == given["test_y"]
    return {"seconds": seconds, "accuracy": float(right.mean())}


def language_model(given) -> dict[str, float]:
    """Trains embedding → LSTM → LSTM → logits by Adam with the norm of the gradient clipped.

    `given`: x, y int32 [n, steps]; vocabulary, embedding, units, epochs, batch_size, rate,
    clip_norm.
    """
    import torch

    names = "vocabulary", "embedding", "units", "epochs", "batch_size"
    vocabulary, embedding, units, epochs, batch_size = (int(given[name]) for name in names)
    torch.manual_seed(0)
    embed = torch.nn.Embedding(vocabulary, embedding)
    lstm = torch.nn.LSTM(embedding, units, num_layers=2, batch_first=True)
    logits = torch.nn.Linear(units, vocabulary)
    parameters = [*embed.parameters(), *lstm.parameters(), *logits.parameters()]
    x, y = (torch.from_numpy(given[name].astype(np.int64)) for name in "xy")
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(parameters, lr=float(given["rate"]), eps=1e-7)
    began = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad()
            answer = logits(lstm(embed(x[rows]))[0])
            loss(answer.flatten(0, 1), y[rows].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, float(given["clip_norm"]))
            optimizer.step()
    return {"seconds": time.perf_counter() - began}


def _set(layer, weight, bias) -> None:
    layer.weight.data, layer.bias.data = weight, bias


SIDES = {"head_swap": head_swap, "language_model": language_model}

if __name__ == "__main__":
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(json.dumps(SIDES[sys.argv[1]](np.load(sys.argv[2]))))
