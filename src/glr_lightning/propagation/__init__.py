"""The passes through a network: noise at chosen layers, one layer's products, what a unit reaches."""
