"""Prints the signatures, labels, proof and size of an export: `inspect SAVED_MODEL`.

SAVED_MODEL is a version, or a folder of versions, of which the newest is taken. Everything is read
from its files; nothing is loaded or run.
"""

import pathlib
from collections.abc import Mapping, Sequence

from tfbp.commands import flags, metrics
from tfbp.errors import mistake
from tfbp.exporting import inspection, layout
from tfbp.reporting.table import table
from tfbp.settings import Fields

# Labels that are printed; the file holds them all.
LABELS = 20


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    _, rest = flags.parse(Fields, arguments, about=__doc__)
    if len(rest) != 1:
        raise mistake("inspect", "must be given one SAVED_MODEL", " ".join(rest))
    folder = layout.newest(pathlib.Path(rest[0]))
    details = inspection.details(folder)
    parts = [_signatures(inspection.signatures(folder)), table(_facts(folder, details))]
    if "metrics" in details:
        parts.append(metrics.of_splits(details["metrics"]))
    print("\n\n".join(parts))


def _signatures(signatures: inspection.Signatures) -> str:
    rows = [("signature", "", "name", "type")]
    for signature, types in signatures.items():
        shown = signature  # in its first row alone
        for part, mark in (("inputs", "in"), ("outputs", "out")):
            for name, type_ in types[part].items():
                rows.append((shown, mark, name, type_))
                shown = ""
    return table(rows)


def _facts(folder: pathlib.Path, details: Mapping) -> list[tuple[str, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    facts = [("folder", str(folder)), ("size", f"{size / 1e6:.2f} MB in {len(files)} files")]
    if "recipe" in details:
        facts.append(("recipe", details["recipe"]))
    if "spec" in details.get("data", {}):
        facts.append(("data", details["data"]["spec"]))
    if (folder / layout.LABELS).is_file():
        names = (folder / layout.LABELS).read_text(encoding="utf-8").splitlines()
        more = f", … ({len(names)} in all)" if len(names) > LABELS else ""
        facts.append(("labels", ", ".join(names[:LABELS]) + more))
    if "fingerprints" in details:
        facts.append(("weights", f"SHA-256 {details['fingerprints']['model']}"))
    for phase in details.get("phases", ()):
        if "trained_variables" in phase["proof"]:
            learnt, frozen = (phase["proof"][f"{part}_variables"] for part in ("trained", "frozen"))
            text = f"{learnt} variables learnt, {frozen} frozen ones are what they were"
            facts.append((f"proof of {phase['name']}", text))
    if "parity" in details:
        parity = details["parity"]
        facts.append(
            (
                "parity",
                f"off the trained model by {parity['difference']:.1e} of the largest magnitude; "
                f"{parity['tolerance']:g} is allowed",
            )
        )
    return facts
