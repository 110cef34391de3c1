"""Networks by name, their weights and their device."""
