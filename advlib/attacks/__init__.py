"""Attacks on a network, and what they do to a data set."""


def __getattr__(name: str):
    if name in ("pgd_attack", "pgd_iterates"):
        from advlib.attacks import pgd as home
    elif name == "evaluate_attack":
        from advlib.attacks import worst_case as home
    else:
        raise AttributeError(f"module 'advlib.attacks' has no attribute {name!r}")
    return getattr(home, name)
