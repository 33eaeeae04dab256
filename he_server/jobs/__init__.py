"""What happens to rounds by themselves."""
