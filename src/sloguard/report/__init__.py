"""Results for people and for other tools: tables, live progress and JSON."""
