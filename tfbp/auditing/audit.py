"""Before training: what would silently go wrong, as findings that can be accepted by id.

for finding in tfbp.audit(model, splits, task, phases, backbone=backbone):
    print(finding.id, finding.message)
"""

from collections.abc import Sequence

import keras
from absl import logging

from tfbp.auditing import (
    classifiers,
    connection,
    examples,
    gradients,
    losses,
    near_copies,
    one_batch,
    preprocessing,
    rounding,
    statistics,
    weights,
)
from tfbp.data.splits import Splits
from tfbp.errors import mistake
from tfbp.finding import IDS, AuditFailed, Finding
from tfbp.modeling import freezing
from tfbp.settings import DEFAULTS, Settings
from tfbp.tasks import sample_outputs
from tfbp.tasks.several import suited
from tfbp.tasks.task import Task
from tfbp.training.phase import Phase


def audit(
    model: keras.Model,
    splits: Splits,
    task: Task,
    phases: Phase | Sequence[Phase],
    settings: Settings = DEFAULTS,
    *,
    backbone: keras.Model | Sequence[keras.Model] = (),
) -> list[Finding]:
    """Looks for what would silently go wrong in a training; errors come first.

    The model is left as it was: weights, statistics, random seeds and what is trainable.

    Args:
        model: a built model, as `tfbp.fit` takes it.
        settings: `allow` has the ids of findings that are accepted, and not returned.
        backbone: the pretrained models that are meant to be part of `model`.

    Raises:
        tfbp.UserError: a phase that does not fit the model, or model, examples and
            task cannot run together at all.
    """
    every = findings(model, splits, task, phases, settings, backbone=backbone)
    return [finding for finding in every if finding.id not in settings.allow]


def findings(
    model: keras.Model,
    splits: Splits,
    task: Task,
    phases: Phase | Sequence[Phase],
    settings: Settings = DEFAULTS,
    *,
    backbone: keras.Model | Sequence[keras.Model] = (),
) -> list[Finding]:
    """Returns the findings of `audit`, those that are accepted too."""
    if not isinstance(model, keras.Model):
        raise mistake("model", "must be a Keras model", model)
    task = suited(task, model)
    phases = [phases] if isinstance(phases, Phase) else phases
    backbones = [backbone] if isinstance(backbone, keras.Model) else list(backbone)
    if strange := [each for each in backbones if not isinstance(each, keras.Model)]:
        raise mistake("backbone", "must be a Keras model, or several", strange[0])
    with one_batch.untouched(model), sample_outputs.computed_once():
        # First, since it looks on while the model is called; the others look at the outputs.
        result = [*preprocessing.findings(model, splits, backbones)]
        mismatch = [*losses.findings(model, splits, task)]
        errors = [finding for finding in mismatch if not finding.warning]
        refused = bool(errors) and "loss-mismatch" not in settings.allow
        if not refused:  # What cannot run at all is accepted by nobody.
            task.check(model, splits.train)
        result += mismatch
        result += connection.findings(model, splits, backbones)
        result += classifiers.findings(model)
        result += rounding.findings(model, splits)
    result += examples.findings(splits, task)
    result += near_copies.findings(splits)
    for number, phase in enumerate(phases):
        with one_batch.untouched(model):
            frozen = freezing.freeze(model, phase.trainable, phase.batch_norm)
            if number == 0:
                result += weights.findings(model, phase, backbones)
            result += statistics.findings(model, phase, frozen)
            if not refused:  # else there is no loss to follow
                effect = one_batch.run(model, splits, task, frozen)
                result += gradients.findings(phase, effect)
                result += statistics.of_batch(phase, effect)
    return sorted(result, key=lambda each: (each.warning, IDS.index(each.id)))


def enforce(findings: Sequence[Finding], allow: Sequence[str]) -> list[dict[str, str]]:
    """Logs warnings and what is accepted, and returns the latter for `result.json`.

    Raises:
        AuditFailed: names the errors that are not accepted.
    """
    accepted = [finding for finding in findings if finding.id in allow]
    left = [finding for finding in findings if finding.id not in allow]
    for finding in accepted:
        logging.warning("Accepted: %s: %s", finding.id, finding.message)
    for finding in left:
        if finding.warning:
            logging.warning("%s: %s", finding.id, finding.message)
    errors = [finding for finding in left if not finding.warning]
    if errors:
        lines = [f" - {finding.id}: {finding.message}" for finding in errors]
        ids = ",".join(dict.fromkeys(finding.id for finding in errors))
        raise AuditFailed(
            "\n".join(["This training would go wrong, and was not begun:", *lines])
            + f"\nWhat is as it should be can be accepted by its id: `allow`, or `--allow={ids}`."
        )
    return [{"id": finding.id, "message": finding.message} for finding in accepted]
