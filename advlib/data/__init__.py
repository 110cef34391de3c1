"""Data sets, and facts about their images."""


def __getattr__(name: str):
    # Loaded late: annotations are read without torch.
    if name in ("DATASETS", "DataError", "Images", "load_dataset", "stratified_subset"):
        from advlib.data import sets

        return getattr(sets, name)
    raise AttributeError(f"module 'advlib.data' has no attribute {name!r}")
