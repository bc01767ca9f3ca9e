"""The base model: fetched from a hub or made on the spot, its folder, and whether this stack can load it."""
