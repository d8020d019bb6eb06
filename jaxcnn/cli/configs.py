"""The config files that are shipped: `configs/` of the repository, in the package of a wheel."""

from pathlib import Path

from jaxcnn.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parents[1] / "configs"


def shipped_configs() -> list[str]:
    """Return the names of the config files.

    >>> {"lenet", "resnet18", "vgg"} <= set(shipped_configs())
    True
    """
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def find_config(given: str) -> str:
    """Return the path of a config file, with the variant: what was given, or that of a name.

    Args:
        given: such as 'lenet', 'lenet:smoke' or 'configs/lenet.py:smoke'.

    Raises:
        ConfigError: if it is no path, and no config of this name is shipped.

    >>> Path(find_config("lenet:smoke")).name
    'lenet.py:smoke'
    >>> find_config("my.py")
    'my.py'
    """
    name, colon, variant = given.partition(":")
    if name.endswith(".py") or Path(name).name != name:
        return given
    if name not in shipped_configs():
        raise ConfigError(
            f"no config is named {name!r}{did_you_mean(name, shipped_configs())}; shipped are "
            f"{', '.join(shipped_configs())}; or give a file, such as --config my.py"
        )
    return f"{FOLDER / name}.py{colon}{variant}"
