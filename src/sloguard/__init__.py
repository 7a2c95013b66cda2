"""sloguard makes LLM serving keep its latency promises."""

__version__ = "0.1.0"
