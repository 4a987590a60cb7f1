"""The model: signal, noise, population and prior, and its declaration in PyMC."""
