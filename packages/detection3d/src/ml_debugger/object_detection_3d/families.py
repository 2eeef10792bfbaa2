"""Recognising parts of other libraries without importing these."""


def keeps(part: object, owner: str, *methods: str) -> bool:
    """Tell whether a part has methods from the class of that name, and not from a descendant."""
    return all(
        getattr(getattr(type(part), name, None), "__qualname__", "") == f"{owner}.{name}"
        for name in methods
    )
