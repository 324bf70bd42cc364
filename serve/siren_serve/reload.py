"""Taking new bundles and keys while requests go on."""

import os
import signal

from litestar.datastructures import State

from . import logs


async def reload_all(state: State) -> bool:
    """Load all anew; with several workers, ask their parent to replace them.

    Returns:
        Whether it is done; the parent does it later.

    Raises:
        SirenError: keys or a bundle cannot be loaded; what is not loaded stays as it was.
    """
    if state.settings.workers > 1:
        os.kill(os.getppid(), signal.SIGHUP)
        return False
    state.api_keys.read()
    await state.guards.load()
    logs.event("reloaded", guards=state.guards.names())
    return True
