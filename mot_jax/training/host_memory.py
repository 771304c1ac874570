"""Keeping the pages of freed memory, for steps on a CPU."""

import ctypes

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_pages() -> None:
    """Lets this process reuse the pages of what it frees; does nothing where the C library has no `mallopt`.

    XLA allocates a CPU step's temporaries anew each time, and glibc gives blocks of that size back to the system at
    once: 25,000 page faults a step of the default config, a quarter of its time on two cores.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no mallopt; no library without a name (Windows: TypeError)
        return
    mallopt(M_ARENA_MAX, 1)  # other arenas cannot hold blocks this large
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
