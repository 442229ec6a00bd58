"""One way to say a mistake: the argument, the rule, what was received, and the close match."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can fix. The command line prints its message and exits with 2."""


class CheckFailed(RuntimeError):
    """A proof or a comparison failed: the model or the export is not what it must be."""


class WorkerLost(RuntimeError):
    """A worker no longer answers; started again, the run goes on from a checkpoint."""


def reason(error: BaseException) -> str:
    """Returns the sentence in which Keras or TensorFlow says why something failed.

    Keras puts it between the layer that was called, or that no shape is known of, and a list of the
    arguments.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rpartition("Error encountered:")[2]
    text = text.partition("Arguments received by")[0]
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception encountered when")]
    return said[0] if said else type(error).__name__


def mistake(argument: str, rule: str, received: object, known: Iterable[str] = ()) -> UserError:
    """The error for an argument that breaks a rule.

    Args:
        argument: name of the argument, printed in backticks.
        rule: what the argument must be, as the end of a sentence: "must be at least 1".
        received: what was given instead.
        known: the names that would have been right; the closest one is suggested, and a short
            list is printed whole.
    """
    known = sorted(known)
    message = f"`{argument}` {rule.rstrip('.')}. Received: {received!r}."
    close = difflib.get_close_matches(str(received), known, n=1, cutoff=0.5)
    if close and close[0] != str(received):
        message += f" Did you mean {close[0]!r}?"
    if known:
        shown = "\n".join(f" - {name}" for name in known[:40])
        more = f"\n   … and {len(known) - 40} more" if len(known) > 40 else ""
        message += f"\nKnown:\n{shown}{more}"
    return UserError(message)
