"""Counter-examples are looked for, not thought of: random trees, signatures and models."""
