"""Projects that use the library: not part of the wheel."""
