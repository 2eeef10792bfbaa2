"""Where records leave for a service, one day; this release keeps them here and says so."""

import warnings

from ml_debugger.core.errors import EndpointError, InputError, SyncError
from ml_debugger.core.settings import Service


def announce(service: Service, *, auto_sync: bool) -> None:
    """Warn that a background upload that was asked for will not happen."""
    if auto_sync and service.endpoint:
        warnings.warn(
            f"auto_sync: this release cannot upload to {service.endpoint}; records stay in the "
            "local store, and export() writes them to a file",
            stacklevel=5,
        )


def wait(service: Service, interval: float) -> None:
    """Wait until a configured service has saved everything; without one, it is saved already.

    Raises:
        InputError: `interval` is not a positive number of seconds.
        SyncError: A service is configured, which this release cannot use.
    """
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
        raise InputError(f"interval must be a positive number of seconds, got {interval!r}")
    if service.endpoint:
        raise _out_of_reach(service.endpoint)


def upload(service: Service) -> None:
    """Send records to the configured service.

    Raises:
        EndpointError: None is configured; the message says what to set.
        SyncError: One is, which this release cannot use.
    """
    if service.endpoint:
        raise _out_of_reach(service.endpoint)
    raise EndpointError(
        "there is no service to upload to: set MLD_API_ENDPOINT and MLD_API_KEY, or pass "
        "api_endpoint= and api_key=. Without a service everything stays in the local store, "
        "where evaluation works as well; export() writes a file to hand over"
    )


def _out_of_reach(endpoint: str) -> SyncError:
    return SyncError(
        f"this release cannot upload to {endpoint}: records are safe in the local store, and "
        "export() writes them to a file; unset MLD_API_ENDPOINT to work locally"
    )
