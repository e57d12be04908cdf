"""Requests that schemathesis makes from an endpoint's OpenAPI document, each answered as the document says."""

import warnings

import hypothesis
import schemathesis
from endpoint_stub import MODES, StubEngine, application
from schemathesis.openapi.checks import RejectedPositiveData


def check_any(operation) -> None:
    @hypothesis.settings(
        max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy())
    def check(case):
        try:
            case.call_and_validate()
        except (Exception, BaseExceptionGroup) as error:
            others = [each for each in getattr(error, "exceptions", [error]) if not isinstance(each, RejectedPositiveData)]
            if others:  # what options forbid together, or a model has not, no schema says
                raise

    check()


def main() -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", application(MODES[0], StubEngine()))
    operations = [result.ok() for result in schema.get_all_operations()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operation in operations:
            check_any(operation)
    print(len(operations), "operations")


if __name__ == "__main__":
    main()
