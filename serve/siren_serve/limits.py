"""How many files, and so connections, the system lets a process have open."""

import sys

if sys.platform != "win32":
    import resource


def allow_open_files(count: int) -> bool:
    """Raise the limit of this process, and of those that it starts, as far as the system lets it.

    Many systems start a process with 1,024, of which it may have more if it asks for them.

    Returns:
        Whether `count` files may be open.
    """
    if sys.platform == "win32":
        return True  # which has no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return True
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted == count
