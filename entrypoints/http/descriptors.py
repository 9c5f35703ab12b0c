"""The limit of open files, which some systems set so low that a server would run into it."""

import resource


def raise_descriptor_limit(wanted: int) -> int:
    """Raise this process's limit of open files as far as allowed; return what it is now, at most ``wanted``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        return ceiling
    return min(wanted, ceiling)
