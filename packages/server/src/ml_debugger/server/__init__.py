"""The service: what SDKs send is kept, evaluated and asked about here, by many people."""

from importlib.metadata import version

__version__ = version("ml-debugger-server")
