"""What goes wrong without a word in plain Keras, and what tfbp says to it, fault by fault.

    python benchmarks/silent_faults.py

Each fault is made twice: with `keras.Model.fit`, which runs to its end while warnings and errors
are caught, and whose harm is measured afterwards; and with `tfbp.fit`. Prints, for each fault, what
plain Keras said, what was wrong at the end, and the finding or failed proof of tfbp.
"""

import contextlib
import dataclasses
import io
import logging
import warnings

import keras
from faults import callbacks, data, models
from faults.setting import Fault

import tfbp
from tfbp.finding import AuditFailed
from tfbp.reporting.table import table
from tfbp.training.proof import ProofFailed


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What plain Keras said ("nothing", a warning, an error), the harm, and what tfbp answered."""

    said: str
    harm: str
    answer: str


def main() -> None:
    rows = [(fault.name, *dataclasses.astuple(make(fault))) for fault in every()]
    print(table([("fault", "plain Keras says", "and does", "tfbp"), *rows]))
    silent = sum(row[1] == "nothing" for row in rows)
    print(f"\n{silent} of {len(rows)} faults go unnoticed in plain Keras.")


def every() -> list[Fault]:
    """Returns the faults: the audit's findings in their order, then what only a proof can find."""
    return [*models.faults(), *data.faults(), *callbacks.faults()]


def make(fault: Fault) -> Outcome:
    """Makes a fault in both, and returns what came of it."""
    keras.utils.set_random_seed(0)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            harm = fault.plain()
    except Exception as error:  # whatever it is, plain Keras has noticed
        return Outcome(f"error: {type(error).__name__}", "stops", _answer(fault))
    finally:
        logging.getLogger().removeHandler(handler)
    known = (UserWarning, RuntimeWarning)
    words = [str(each.message) for each in caught if issubclass(each.category, known)]
    words += log.getvalue().splitlines()
    return Outcome(f"warns: {words[0][:40]}…" if words else "nothing", harm, _answer(fault))


def _answer(fault: Fault) -> str:
    keras.utils.set_random_seed(0)
    arguments = fault.ours()
    callbacks = arguments.pop("callbacks", ())
    found = tfbp.audit(**arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            tfbp.fit(**arguments, callbacks=callbacks)
        except AuditFailed:
            return ", ".join(finding.id for finding in found if not finding.warning)
        except ProofFailed:
            return "ProofFailed"
    return ", ".join(f"{finding.id} (warning)" for finding in found) or "nothing"


if __name__ == "__main__":
    main()
