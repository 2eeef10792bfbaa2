"""Settings of a data filter; task packages add theirs."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
