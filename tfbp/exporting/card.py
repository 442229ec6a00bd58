"""The model card of an export, in Markdown: its signatures, results, training and proof."""

from collections.abc import Iterable, Mapping, Sequence


def text(name: str, details: Mapping, labels: Sequence[str]) -> str:
    """Returns the model card, after Mitchell et al. 2019 ("Model Cards for Model Reporting").

    Args:
        name: of the model and its version: "vgg16/3".
        details: what `tfbp.json` holds.
        labels: class names in label order; none for other tasks.
    """
    data = details.get("data", {})
    by = f"the recipe `{details['recipe']}`" if "recipe" in details else "`tfbp.fit`"
    data_spec = f" on `{data['spec']}`" if "spec" in data else ""
    parts = [
        f"# {name}",
        f"Trained by {by} of tfbp{data_spec}, and exported as a TensorFlow SavedModel.",
        "## What it takes and answers",
        _table(
            ["signature", "inputs", "outputs"],
            (
                [f"`{signature}`", _types(types["inputs"]), _types(types["outputs"])]
                for signature, types in details["signatures"].items()
            ),
        ),
    ]
    if "image_bytes" in details["signatures"]:
        parts.append(
            "Pixels are 0 to 255 and images of any size: resizing and preprocessing are inside. "
            "Files are JPEG, PNG, GIF or BMP."
        )
    if labels:
        shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
        parts.append(f"Its {len(labels)} classes, in `labels.txt`: {shown}.")
    if "metrics" in details:
        parts += ["## How well", _metrics(details["metrics"], data.get("sizes", {}))]
        parts.append(
            "The test and validation examples are of the same source as those it learnt from: how "
            "well it does on others is not known."
        )
    if "phases" in details:
        rows = [[phase["name"], str(phase["epochs"])] for phase in details["phases"]]
        parts += ["## How it was trained", _table(["phase", "epochs"], rows)]
    parity = details["parity"]
    parts += [
        "## Proof",
        "The export holds the trained model's variables, bit for bit. A fresh process answered "
        f"every signature, in batches of {_list(parity['batches'])}, like the trained model: to "
        f"{parity['difference']:.1e} of the largest magnitude, where {parity['tolerance']:.1e} is "
        f"allowed and the model's own rounding is {parity['rounding']:.1e}. It answered the "
        "warm-up requests too. `tfbp.json` holds settings, fingerprints, versions and the proof "
        "of each phase.",
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(splits: Mapping[str, Mapping], sizes: Mapping[str, int]) -> str:
    numbers = {
        split: {name: value for name, value in values.items() if isinstance(value, int | float)}
        for split, values in splits.items()
    }
    names = list(dict.fromkeys(name for values in numbers.values() for name in values))
    rows = (
        [split, str(sizes.get(split, "")), *(f"{values[name]:.4f}" for name in names)]
        for split, values in numbers.items()
    )
    return _table(["examples", "count", *names], rows)


def _types(types: Mapping[str, str]) -> str:
    return "<br>".join(f"`{name}`: {type_}" for name, type_ in types.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in row) + " |" for row in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _list(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last
