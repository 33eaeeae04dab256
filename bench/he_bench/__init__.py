"""he-bench: what HushSum costs, case by case, and beside its peers."""
