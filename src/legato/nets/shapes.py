"""What the networks for pictures ask of their inputs."""

from legato import errors


def picture(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W), or the error that says that network `name` needs it."""
    if len(input_shape) != 3:
        raise errors.argument(
            "model", expected=f"pictures of shape [C, H, W] for {name}", got=f"inputs of shape {list(input_shape)}",
            fix="use mlp for vectors",
        )  # fmt: skip
    channels, height, width = input_shape
    return channels, height, width
