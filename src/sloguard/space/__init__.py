"""What can be configured, and what cannot work."""
