from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.laptop import Laptop, laptop


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.local)


@pytest.fixture
def machine() -> Iterator[Laptop]:
    with laptop() as running:
        yield running
