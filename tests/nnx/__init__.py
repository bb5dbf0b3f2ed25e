"""NNX modules as layers: what the parity and conformance tables do not say."""
