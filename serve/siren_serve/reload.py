"""Taking new bundles and keys while requests go on."""

import os
import signal
from functools import partial

from litestar.datastructures import State

from . import logs
from .guards import Served
from .proxy.policy import Policy


async def load_guards(state: State) -> None:
    """Load the guards; in front of a model server the first must read streams as it is asked to.

    Raises:
        SirenError: one cannot be used; all stay as they were.
    """
    await state.guards.load(partial(_check_streams, state) if state.settings.proxy else None)


async def _check_streams(state: State, served: Served) -> None:
    """Open a stream as answers will be read."""
    settings = state.settings
    policy = Policy(served, settings.proxy, state.metrics, settings.timeout_s)
    async with policy.stream(""):
        pass


async def reload_all(state: State) -> bool:
    """Load all anew; with several workers, ask their parent to replace them.

    Returns:
        Whether it is done; the parent does it later.

    Raises:
        SirenError: keys or a bundle cannot be loaded, which it names; all stays as it was.
    """
    if state.settings.workers > 1:
        os.kill(os.getppid(), signal.SIGHUP)
        return False
    keys = state.api_keys.read()
    await load_guards(state)
    state.api_keys.take(keys)
    logs.event("reloaded", guards=state.guards.names())
    return True
