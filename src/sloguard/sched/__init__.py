"""Which tokens run in the next batch: policies and the KV cache they share, without clock or I/O."""
