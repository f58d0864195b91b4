"""Sessions of the consumers."""

from pathlib import Path

import pytest

from dipo.errors import UserError
from dipo.verify.sessions import options, with_operators_of


def test_sessions_have_the_operators_of_the_run_s_library():
    with with_operators_of(Path("operators.so")), pytest.raises(UserError, match=r"model.op_library=operators.so"):
        options(threads=1)
    options(threads=1)
