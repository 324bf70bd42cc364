"""What the train extra brings. Most of it is imported only when a command runs."""

from siren_runtime.commands.console import need


def need_train_extra() -> None:
    """See that the train extra is installed.

    Raises:
        ImportError: it is not; its message names what is missing.
    """
    need(
        "onnxruntime",
        "onnx_ir",
        "ml_dtypes",
        "safetensors",
        "httpx",
        "matplotlib",
        "optuna",
        "pyarrow",
        "sklearn",
        "scipy",
        "torch",
    )
