"""What talks to a service.

Read from the wire up: `transport` is requests that end, `client` what a service can be asked,
`endpoint` the service that is configured; `delivery` sends once what it does not have of a model
version, and `uploader` decides when.
"""
