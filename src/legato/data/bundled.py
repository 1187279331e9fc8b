"""The real data sets that come with scikit-learn."""

from pathlib import Path

import numpy as np

from legato.data.pool import Labelled, Origin, Pool

BUNDLED = Origin("with scikit-learn", ("with scikit-learn",))


def read_digits(data_dir: Path | None, download: bool) -> Pool:
    """1,797 handwritten digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return Pool(
        name="digits",
        rows=Labelled(images, digits.target.astype(np.int64)),
        class_names=tuple("0123456789"),
        origin=BUNDLED,
        licence="CC-BY-4.0 (UCI)",
        citation="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI",
        notes=("grey values 0 .. 16 were scaled to 0 .. 255",),
    )


def read_breast_cancer(data_dir: Path | None, download: bool) -> Pool:
    """569 tumours, 30 measurements each, malignant or benign."""
    from sklearn.datasets import load_breast_cancer

    cancer = load_breast_cancer()
    return Pool(
        name="breast_cancer",
        rows=Labelled(cancer.data.astype(np.float32), cancer.target.astype(np.int64)),
        class_names=tuple(str(name) for name in cancer.target_names),
        feature_names=tuple(str(name) for name in cancer.feature_names),
        origin=BUNDLED,
        licence="CC-BY-4.0 (UCI)",
        citation="Wolberg, Mangasarian, Street 1995, Breast Cancer Wisconsin (Diagnostic), UCI",
    )
