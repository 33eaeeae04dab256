"""The whole system in one thread, one virtual clock and one seed: see `world` and `operations`."""
