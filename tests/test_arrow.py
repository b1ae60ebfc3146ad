"""Arrow's arrays of booleans as numpy's and back, without what imports pandas."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.arrow import flags_array, flags_of


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 20), st.integers(0, 20))
def test_flags_are_what_arrow_says(flags, start, length):
    assert flags_array(np.array(flags, bool)).equals(pa.array(flags, pa.bool_()))
    part = pa.array(flags, pa.bool_()).slice(start, length)
    assert flags_of(part).tolist() == flags[start : start + length]
    assert flags_of(part).dtype == bool
