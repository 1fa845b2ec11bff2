"""Says in words what pydantic finds wrong. Values are left out, since they may be secret or come from an upstream."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def describe_validation_error(error: ValidationError, *, root_name: str = "") -> str:
    """Return each problem of an error as `field.path: what is wrong`, separated by semicolons.

    `root_name` stands for the path of a problem that is in no field.
    """
    return "; ".join(
        describe_problem(problem, root_name=root_name)
        for problem in error.errors(include_url=False, include_input=False)
    )


def describe_problem(problem: ErrorDetails, *, root_name: str = "") -> str:
    """Return one problem as `field.path: what is wrong`."""
    return f"{'.'.join(map(str, problem['loc'])) or root_name}: {problem['msg']}"
