"""One test for many small cases, where a test for each would bury what is tested."""

import inspect
from functools import wraps

import pytest


def every(cases):
    """Turn a check of one case into a test of all cases; it fails with a line for each that fails.

    The check's first argument is the case, the others are fixtures.
    """

    def decorate(check):
        @wraps(check)
        def test(**fixtures):
            faults = []
            for case in cases:
                try:
                    check(case, **fixtures)
                # `pytest.raises` and `pytest.fail` end in an exception that is no `Exception`.
                except (Exception, pytest.fail.Exception) as fault:
                    faults.append(f"{case}: {type(fault).__name__}: {fault}")
            assert not faults, "\n".join([f"{len(faults)} of {len(cases)} cases fail:", *faults])

        signature = inspect.signature(check)
        test.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        return test

    return decorate
