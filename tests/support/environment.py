"""The environment in which the tests run."""

import sys

CU13 = sys.version_info >= (3, 12)
