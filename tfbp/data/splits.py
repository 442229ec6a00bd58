"""Examples to train on, to choose by, and to judge by.

splits = Splits.from_arrays(x, y, classes=("cat", "dog"))
splits = splits.augmented(transform)          # the training examples alone
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from numpy.typing import ArrayLike

from tfbp.data import datasets, grouping, indexes, labels, splitting, structures, times
from tfbp.data.examples import Examples, Transform
from tfbp.data.labels import Classes, Names
from tfbp.data.vocabulary import Vocabulary
from tfbp.errors import UserError, mistake


@dataclasses.dataclass(frozen=True)
class Splits:
    """Examples to train on, to choose by, and to judge by.

    Attributes:
        train, validation, test: the examples; the last two may be None.
        classes: class names in the order of their labels; None for regression and text. Where y is
            a structure, those of each of its labels, by name.
        vocabulary: for text, what its tokens stand for.
        description: where the examples come from: the `--data` spec, or "arrays".
    """

    train: Examples
    validation: Examples | None = None
    test: Examples | None = None
    classes: Any = None  # tuple[str, ...], or a dict of them
    vocabulary: Vocabulary | None = None
    description: str = "arrays"

    def __post_init__(self) -> None:
        """Checks that all parts have one form.

        Raises:
            tfbp.UserError: x or y of a part differs from the training part's in shape, dtype or
                names.
        """
        for name, part in self.parts().items():
            for own, of_train in zip(_forms(part), _forms(self.train), strict=True):
                if own and of_train and own != of_train:
                    raise UserError(
                        f"`{name}` must have the form of `train`, {of_train}. Received: {own}."
                    )

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        *,
        classes: Classes | Mapping[str, Classes] | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        columns: Sequence[str] | None = None,
        values: Sequence[str] | None = None,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        order: ArrayLike | None = None,
    ) -> "Splits":
        """Cuts two arrays by content (see `splitting.cut`).

        Args:
            x: images [size, height, width, channels] from 0 to 255 (uint8 stays uint8 in memory),
                vectors [size, features], or numbers [size]. Whole numbers that float32 would round
                reach the model as int32 or int64.
            y: labels [size], as whole numbers or names; or values to predict, floats [size, k] or
                [size]. One-hot rows [size, classes] are labels if they are whole numbers or if
                there are `classes`; so are floats that are whole, if there are `classes`. Other
                rows of 0 and 1 of these types, or a list of names for each example, are several
                labels: float32 [labels], for `tfbp.MultiLabel`.
            x and y may be structures: dicts, or tuples, of such arrays with equally many rows, in
                which x may hold text, [size, …], too. The model then takes, and answers, dicts of
                the same names. In a structure whole numbers of x are int32 or int64.
            classes: class names in the order of their labels; or whole numbers: the labels
                themselves, in the order wanted. Default: the names that occur, sorted, or "0", "1",
                … for whole numbers, which must then be 0, 1, …. Where y is a dict, a dict of them.
            validation, test: fractions held out, in [0, 1).
            seed: which examples are held out.
            columns, values: for a table, what the entries of x and of y are called: an export takes
                and answers them by these names. The columns of a DataFrame have theirs already.
            weights: [size], at least 0: how much each example counts in the loss that is trained
                with, whose mean is over the number of examples, as Keras takes it. Results are
                without weights.
            groups: [size]: what each example belongs to, a patient, a user, a burst of photographs.
                All examples of a group are in one split: see `splitting.cut`.
            order: [size]: when each example was, as numbers or dates. The last ones are held out:
                see `splitting.cut_in_order`.

        Raises:
            tfbp.UserError: lengths, or the indexes of pandas objects, differ, there are no
                examples, a value is missing or infinite, numbers would be rounded until they are
                equal, one class only, fewer examples than classes, a label outside `classes`, a
                class without examples, a name that UTF-8 cannot hold, a fraction out of range.
        """
        indexes.check_equal(x=x, y=y, weights=weights, groups=groups, order=order)
        targets, names = labels.separate_each(y, classes)
        examples = Examples.from_arrays(x, targets, columns=columns, values=values, weights=weights)
        return cls.cut(
            examples,
            classes=names,
            validation=validation,
            test=test,
            seed=seed,
            groups=groups,
            order=order,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: tf.data.Dataset,
        *,
        classes: Classes | Mapping[str, Classes] | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        at_most: int | None = None,
    ) -> "Splits":
        """Reads a finite dataset of (x, y), or (x, y, weight), into memory and cuts it.

        They may be single examples or batches. Everything else is as in `from_arrays`.

        Args:
            at_most: how many examples the dataset may hold. Default: any number if it says its
                size, and else 100,000, or 4 GiB.

        Raises:
            tfbp.UserError: the dataset is infinite or larger than it may be, empty or of something
                else, its examples differ in shape, or what `from_arrays` raises.
        """
        x, y, weights = datasets.read(dataset, at_most)
        return cls.from_arrays(
            x, y, weights=weights, classes=classes, validation=validation, test=test, seed=seed
        )

    @classmethod
    def cut(
        cls,
        examples: Examples,
        *,
        classes: Names | Sequence[str] | None = None,
        validation: float | Examples = 0.1,
        test: float | Examples = 0.1,
        seed: int = 0,
        groups: ArrayLike | None = None,
        order: ArrayLike | None = None,
    ) -> "Splits":
        """Cuts the held-out parts from `examples`, unless they are given.

        Args:
            examples: what is cut; the rest is trained on.
            classes: class names in the order of their labels. Default: "0", "1", … for labels.
            validation, test: a fraction in [0, 1) to cut, or the examples of that split.
            seed: which examples are held out.
            groups, order: of `examples`: see `from_arrays`.

        Raises:
            tfbp.UserError: a fraction is out of range, labels and classes do not fit, or there are
                both groups and an order.
        """
        names = labels.check_each(examples.targets, classes)
        given = {"validation": validation, "test": test}
        fractions = {
            name: 0.0 if isinstance(part, Examples) else part for name, part in given.items()
        }
        splitting.check_fractions(**fractions)
        if not isinstance(seed, int | np.integer):
            raise mistake("seed", "must be a whole number", seed)
        train, *cuts = _cut(examples, fractions, seed, groups, order)
        for (name, fraction), rows in zip(fractions.items(), cuts, strict=True):
            if fraction and not len(rows):
                logging.warning(
                    "`%s` is empty, although %g %% of the examples were to be held out: too few "
                    "of them differ in what they are cut by, content, group or time.",
                    name,
                    100 * fraction,
                )
        parts = {
            name: part if isinstance(part, Examples) else examples.take(rows) if len(rows) else None
            for (name, part), rows in zip(given.items(), cuts, strict=True)
        }
        return cls(examples.take(train), parts["validation"], parts["test"], classes=names)

    def parts(self) -> dict[str, Examples]:
        """The splits that are not empty, by name, `train` first."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: examples for name, examples in named.items() if examples is not None}

    def augmented(self, transform: Transform | None) -> "Splits":
        """Augments the training examples and no others: see `Examples`."""
        return dataclasses.replace(self, train=self.train.augmented(transform))

    def keep_per_class(self, count: int, *, seed: int = 0) -> "Splits":
        """Keeps at most `count` training examples of each class.

        Raises:
            tfbp.UserError: `count` is under 1, or the examples have no labels.
        """
        if count < 1:
            raise mistake("per_class", "must be at least 1", count)
        if self.train.labels is None:
            raise mistake("per_class", "needs examples with class labels", count)
        kept = splitting.first_of_each_class(self.train.hashes, self.train.labels, count, seed)
        return dataclasses.replace(self, train=self.train.take(kept))


def _forms(examples: Examples) -> list[str]:
    """What x and y of examples are, and what their entries are called ("": they have no names)."""
    x, y = map(structures.described, examples.spec)
    called = {"columns": examples.columns, "values": examples.values}
    named = [f"{kind} {', '.join(names)}" if names else "" for kind, names in called.items()]
    return [f"x: {x}", f"y: {y}", *named]


def _cut(
    examples: Examples,
    fractions: dict[str, float],
    seed: int,
    groups: ArrayLike | None,
    order: ArrayLike | None,
) -> splitting.Positions:
    if groups is not None and order is not None:
        raise UserError("`groups` and `order` must not both be given: each says where to cut.")
    validation, test = fractions["validation"], fractions["test"]
    if order is not None:
        return splitting.cut_in_order(times.numbers(order, examples.size), validation, test)
    of_labels = [
        each for each in structures.leaves(examples.targets).values() if labels.is_label(each)
    ]
    of_class = of_labels[0] if len(of_labels) == 1 else None
    if groups is None:
        return splitting.cut(examples.hashes, of_class, validation, test, seed)
    names = grouping.names(groups, examples.size)
    rows = splitting.cut(examples.hashes, of_class, validation, test, seed, names)
    for (part, fraction), held_out in zip(fractions.items(), rows[1:], strict=True):
        share = len(held_out) / examples.size
        if fraction and share and not fraction / 2 <= share <= 2 * fraction:
            logging.warning(
                "`%s` holds %.1f %% of the examples, for %.1f %% of the groups: they are few, or "
                "of very different sizes. Another fraction or seed may suit them better.",
                part,
                100 * share,
                100 * fraction,
            )
    return rows
