"""Many replicas as one endpoint: who they are, which of them gets a request, and what becomes of it when one fails."""
