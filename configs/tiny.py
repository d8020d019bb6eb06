"""A network of 70,330 parameters on Fashion-MNIST, whose weights come with jaxcnn.

python train.py --config configs/tiny.py

A minute an epoch on two cores of an AMD EPYC (Zen 3). Test accuracy of the best of 40 epochs by the
validation set, seed 0: 0.9441. docs/recipes.md says how the recipe was found.
"""

from ml_collections import ConfigDict

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "small_tiny"
    config.normalization = "per_channel"
    config.validation_examples = 2000
    config.augmentation = "shift:2, flip, erasing:0.2"
    config.test_augmentation = "flip"
    config.label_smoothing = 0.1
    config.batch_size = 256
    config.last_batch = "merged"
    config.num_epochs = 40
    config.optimizer = "muon"
    config.momentum = 0.95
    config.learning_rate = 0.02
    config.schedule = "linear"
    config.warmup_epochs = 6.0
    config.weight_decay = 0.03
    config.weight_decay_on = "kernels"
    config = apply_variant(config, variant, smoke_image_size=28)
    if variant:  # two epochs, and 240 examples
        config.warmup_epochs, config.validation_examples = 0.5, 40
    return config
