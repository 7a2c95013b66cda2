"""Open-loop load over HTTP: requests go out when they are due, and every token is timed on arrival."""
