"""The service processes of the whole-service tests."""

from tests.e2e.conftest import launch, repository, service, short_timeouts

__all__ = ["launch", "repository", "service", "short_timeouts"]
