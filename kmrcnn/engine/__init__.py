"""How a step runs on each backend, and the loop around it."""
