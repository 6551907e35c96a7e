"""The settings of the library's own tests."""

import tests.support.strict  # noqa: F401
