"""Networks by name, their weights and their device."""


def __getattr__(name: str):
    if name in ("Normalize", "build_model", "load_weights", "read_weights"):
        from advlib.networks import build

        return getattr(build, name)
    raise AttributeError(f"module 'advlib.networks' has no attribute {name!r}")
