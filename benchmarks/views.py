"""What cached views of augmented images cost in accuracy, and save in time.

    python benchmarks/views.py [--data=folder:PATH] [--weights=FILE] [--views=8] [--turns=3]

A head is trained on a frozen VGG16 with mirrored and shifted 32 × 32 images: each epoch has views
of its own, or epochs cycle through cached ones, or there is one image alone. Each turn has another
seed, of order and views. The accuracy is of images that are held out; the clock runs from the call
of `fit` to its return.
"""

import dataclasses
import tempfile

import turns
import vgg

import tfbp
from tfbp.data.augmentation import augmentation
from tfbp.settings import field
from tfbp.tasks.classification import Classification
from tfbp.training.phase import Phase

RATE = 1e-3
FRESH, PLAIN = "fresh views", "not augmented"


@dataclasses.dataclass(frozen=True)
class Flags(vgg.Flags):
    epochs: int = field(16, "of the head", low=1)
    views: int = field(8, "of each image that are cached", low=1)


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    images = vgg.load(settings)
    outcomes = measure(settings, images)
    print(vgg.about(settings, f"{settings.epochs} epochs of the head"))
    print(turns.report(outcomes, goals(settings, outcomes, images)))


def measure(settings: Flags, images: vgg.Images) -> turns.Outcomes:
    transform = augmentation(flip=True, shift=0.1)
    seeds = {name: iter(range(settings.turns)) for name in (FRESH, _cached(settings), PLAIN)}

    def side(name, transform, views):
        return lambda: _train(settings, images, transform, views, next(seeds[name]))

    return turns.by_turns(
        {
            FRESH: side(FRESH, transform, 0),
            _cached(settings): side(_cached(settings), transform, settings.views),
            PLAIN: side(PLAIN, None, 0),
        },
        settings.turns,
    )


def goals(settings: Flags, outcomes: turns.Outcomes, images: vgg.Images) -> list[turns.Goal]:
    cached = _cached(settings)
    return [
        vgg.equal_accuracy(outcomes, cached, FRESH, images),
        turns.Goal(f"{FRESH} / {cached}", turns.ratio(outcomes, FRESH, cached)),
    ]


def _cached(settings: Flags) -> str:
    return f"{settings.views} cached views"


def _train(settings: Flags, images: vgg.Images, transform, views, seed) -> turns.Outcome:
    model, splits = vgg.network(settings), images.splits()
    splits = dataclasses.replace(splits, train=splits.train.augmented(transform))
    phase = Phase("head", "head.*", epochs=settings.epochs, learning_rate=RATE)
    with tempfile.TemporaryDirectory() as folder:

        def fit():
            tfbp.fit(
                model,
                splits,
                Classification(vgg.CLASSES),
                phase,
                tfbp.Settings(
                    batch_size=settings.batch_size,
                    seed=seed,
                    cache_dir=folder,
                    cached_views=views,
                    allow=("random-frozen",),
                ),
            )

        return {"seconds": turns.seconds(fit), "accuracy": images.accuracy(model)}


if __name__ == "__main__":
    main()
