"""Recognising objects of other libraries without importing these."""


def is_a(model: object, *qualified_names: str) -> bool:
    """Test an object's ancestry by name, so that no family's library is imported to say no."""
    ancestors = {f"{a.__module__}.{a.__qualname__}" for a in type(model).__mro__}
    return not ancestors.isdisjoint(qualified_names)


def keeps(part: object, owner: str, *methods: str) -> bool:
    """Tell whether a part has methods from the class of that name, and not from a descendant."""
    return all(
        getattr(getattr(type(part), name, None), "__qualname__", "") == f"{owner}.{name}"
        for name in methods
    )
