"""A model's program as StableHLO, which needs JAX alone to run."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping

import jax
from jax import export

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    function: Callable[[jax.Array], jax.Array],
    images: jax.ShapeDtypeStruct,
    metadata: Mapping[str, str],
) -> bytes:
    """Write the program of a function as `jax.export` serializes it.

    It has no place for metadata. They follow it as a zip archive of one file: `jax.export` reads
    from the start of the bytes and `zipfile` from their end, and neither looks at the rest.

        program = jax.export.deserialize(bytearray(open("lenet.stablehlo", "rb").read()))
        logits = program.call(images)
        metadata = json.loads(zipfile.ZipFile("lenet.stablehlo").read("metadata.json"))

    Args:
        function: from images to logits; its weights become constants of the program.
        images: uint8 [N, H, W, C], with a symbol for N.
        metadata: the content of `metadata.json` in the archive.

    Returns:
        The content of the file.

    Raises:
        ValueError: if the program has an operation that `jax.export` does not write.
    """
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(images)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("metadata.json", json.dumps(dict(metadata), indent=1))
    return bytes(exported.serialize()) + archive.getvalue()
