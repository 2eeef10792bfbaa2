"""The parts of the error model, in the order in which data passes through them."""
