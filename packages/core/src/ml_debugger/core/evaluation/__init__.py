"""How likely a prediction is wrong, in which zone it lies, and what it was mistaken for."""
