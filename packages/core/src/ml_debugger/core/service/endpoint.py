"""The service that is configured, if one is."""

import warnings

from ml_debugger.core.errors import EndpointError
from ml_debugger.core.service.client import ServiceClient
from ml_debugger.core.settings import Service, outside


def client_of(service: Service) -> ServiceClient | None:
    """Return the connection to a configured service; None if none is.

    Raises:
        InputError: The endpoint or the key is malformed, or the key is missing.
    """
    if service.endpoint is None:
        return None
    client = ServiceClient(service.endpoint, service.api_key)
    if not client.encrypted:
        warnings.warn(
            f"{client.endpoint} is not encrypted: whoever is on the way can read the API key and "
            "the records; use https",
            stacklevel=outside(),
        )
    return client


def needed(client: ServiceClient | None) -> ServiceClient:
    """Return the connection to the service.

    Raises:
        EndpointError: None is configured; the message says what to set.
    """
    if client is None:
        raise EndpointError(
            "there is no service to upload to: set MLD_API_ENDPOINT and MLD_API_KEY, or pass "
            "api_endpoint= and api_key=. Without a service everything stays in the local store, "
            "where evaluation works as well; export() writes a file to hand over"
        )
    return client
