"""The bars of all commands, under the name that some of training's know them by."""

from siren_runtime.commands.bars import Bars

__all__ = ["Bars"]
