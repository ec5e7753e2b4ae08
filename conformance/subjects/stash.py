"""Where pytest keeps the subjects of a run."""

import pytest

SUBJECTS = pytest.StashKey[list]()
