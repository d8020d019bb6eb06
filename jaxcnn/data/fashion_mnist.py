"""Fashion-MNIST: what is known of it, and its loader."""

from pathlib import Path

from jaxcnn.data import cache
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.spec import DebianPackage, IdxSpec

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST = IdxSpec(
    name="fashion_mnist",
    title="Fashion-MNIST",
    version="3.0.1",
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    file_sha256={
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    content_sha256={
        "train": "0c69d5cdeb902b69084012f812f066de080317bb3c64f43ca87f910d8ec86906",
        "test": "90c92c0507755a7d443edde8297ce4d0f131e42884e2e87e7fc9b81ffe215258",
    },
    debian=DebianPackage("dataset-fashion-mnist", DEBIAN_FOLDER),
)


def load_fashion_mnist(
    split: str, data_dir: str | Path | None = None, data_source: str | Path | None = None
) -> Dataset:
    """Load Fashion-MNIST.

    The first call prepares the data, which takes half a minute; later calls memory-map the arrays.
    The data come from the first of these that exists: the copy that TFDS prepared in `data_dir`;
    the published files in `data_source`; those of Debian's package dataset-fashion-mnist; TFDS's
    download. Each gives the same examples in the same order, TFDS's, and every load verifies them.

    Args:
        split: 'train' (60,000 examples) or 'test' (10,000).
        data_dir: TFDS's data directory; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        data_source: folder with the four published IDX files, compressed (.gz) or not.

    Returns:
        Read-only images, uint8 [N, 28, 28, 1], labels, int32 [N], and the ten class names.

    Raises:
        ValueError: if the split does not exist.
        DataError: if the data cannot be found or downloaded, or a file is damaged.
    """
    return cache.load_idx_dataset(FASHION_MNIST, split, data_dir, data_source)


def is_available_offline(data_dir: str | Path | None = None) -> bool:
    """Return whether Fashion-MNIST can be loaded without a network.

    Args:
        data_dir: see `load_fashion_mnist`.
    """
    return cache.is_available_offline(FASHION_MNIST, data_dir)
