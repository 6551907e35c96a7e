"""Huge pages for the memory of a training step, which a CPU otherwise maps anew, 4 KiB at a time, in every step."""

import os
import re
import sys

TUNABLE = "glibc.malloc.hugetlb"
SINCE = (2, 35)  # version of glibc


def restart_with_huge_pages() -> None:
    """Starts this program again with glibc's allocator set to ask for huge pages, unless the user has set it.

    The allocator reads its settings only when a program starts. Elsewhere than on Linux with glibc nothing happens.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.executable or TUNABLE in tunables or glibc() < SINCE:
        return
    environment = os.environ | {"GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{TUNABLE}=1")))}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def glibc() -> tuple[int, int]:
    """Returns the version of glibc; (0, 0) without it."""
    try:
        found = re.fullmatch(r"glibc (\d+)\.(\d+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):
        return 0, 0
    return (int(found[1]), int(found[2])) if found else (0, 0)
