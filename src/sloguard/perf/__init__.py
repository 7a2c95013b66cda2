"""How long a batch takes and how much memory a model needs."""
