"""Do class-conditional samples look like the requested class, to a judge trained on real images?"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import METRICS, ImageSet, Number, check_same_shape, proportion


@METRICS.register("class_accuracy", example={"max_train": 200, "max_test": 100})
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """Share of samples that a classifier of REAL images assigns to the requested class.

    The judge is a support-vector machine (RBF kernel, gamma = 1 / (pixels * variance)) on raw pixels in [-1, 1],
    fitted on at most `max_train` real training images. The generator's samples play no part in the fitting.

    How to read it: the judge itself errs, so perfect samples would score `classifier_test_accuracy`, its accuracy on
      real
    images that it has not seen. The metric says nothing about variety (one good image per class, repeated, scores
    100%). On photographs, where pixels make a poor judge, the number means little, and the test accuracy shows it.

    Attributes:
      max_train: training images that the judge is fitted on (a fixed random subset of the split).
      max_test: real test images that its own accuracy is measured on (likewise).
      penalty: C of the support-vector machine.
    """

    max_train: int = 10_000
    max_test: int = 2_000
    penalty: float = 10.0
    title: ClassVar[str] = "Class accuracy"
    about: ClassVar[str] = (
        "A classifier trained on real images alone looks at each sample: does it see the class that was asked for? "
        "Its accuracy on real images that it has not seen is what perfect samples would score. It says nothing about "
        "variety."
    )
    headline: ClassVar[str] = "accuracy"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "train", "held_out", "classes"})
    numbers: ClassVar[Mapping[str, Number]] = {
        "accuracy": Number(label="Samples of the asked-for class", kind="percent"),
        "classifier_test_accuracy": Number(label="The same classifier on held-out real images", kind="percent"),
        "num_classifier_train": Number(label="real images for the classifier to learn from", kind="count"),
        "num_classifier_test": Number(label="to test it on", kind="count"),
    }
    note: ClassVar[str] = "{classifier_test_accuracy} on real images"

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns `accuracy` and `classifier_test_accuracy` with 95% Wilson intervals, `class_<k>` for every requested
        class, and the numbers of images behind them."""
        check_same_shape(samples, train, test)
        for name, images in (("samples", samples), ("training images", train), ("test images", test)):
            if images.labels is None:
                raise UserError(f"class_accuracy needs labels, and the {name} have none; leave this metric out")
        train, test = train.subset(self.max_train), test.subset(self.max_test)
        if len(np.unique(train.labels)) < 2:
            raise UserError("class_accuracy needs training images of at least two classes")

        from sklearn.svm import SVC  # costs a second to import

        judge = SVC(kernel="rbf", C=self.penalty, gamma="scale").fit(train.flat(), train.labels)
        right = judge.predict(samples.flat()) == samples.labels
        right_on_test = judge.predict(test.flat()) == test.labels
        per_class = {f"class_{k}": float(right[samples.labels == k].mean()) for k in np.unique(samples.labels)}
        return {
            **proportion("accuracy", right),
            **proportion("classifier_test_accuracy", right_on_test),
            **per_class,
            "num_samples": len(samples),
            "num_classifier_train": len(train),
            "num_classifier_test": len(test),
        }
