"""Recognising objects of other libraries without importing these."""


def is_a(model: object, *qualified_names: str) -> bool:
    """Test an object's ancestry by name, so that no family's library is imported to say no."""
    ancestors = {f"{a.__module__}.{a.__qualname__}" for a in type(model).__mro__}
    return not ancestors.isdisjoint(qualified_names)
