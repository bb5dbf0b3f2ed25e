"""The conformance kit, on every adapter there is and on broken ones."""
