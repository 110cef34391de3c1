"""Networks by name, their weights and their device."""


def __getattr__(name: str):
    if name in ("Normalize", "build_model"):
        from advlib.networks import build as home
    elif name in ("load_weights", "read_weights"):
        from advlib.networks import weights as home
    else:
        raise AttributeError(f"module 'advlib.networks' has no attribute {name!r}")
    return getattr(home, name)
