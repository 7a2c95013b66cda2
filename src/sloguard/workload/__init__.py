"""What is asked of a server, and when: drawn before any clock starts, from named random streams."""
