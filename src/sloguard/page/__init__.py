"""Results as a page: one HTML file that needs nothing else, and its figures as files."""
