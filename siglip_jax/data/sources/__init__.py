"""Sources of examples, one module for each kind of data set."""

from siglip_jax._optional import import_optional

import_optional("pyarrow", "reading data sets", "data")
